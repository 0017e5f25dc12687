"""The typed configuration of the speech task: sections with their defaults, and the checks that need no data."""

from dataclasses import dataclass, field
from pathlib import Path

from shared import config
from shared.config import TrainingConfig, UserError, check_bounds, check_choices, missing_path


@dataclass(frozen=True)
class DataConfig:
    """Where utterances come from and how they are batched."""

    corpus: str = "tiny_world"  # tiny_world | timit | manifest | tfds:NAME[/CONFIG]
    dir: str = ""  # folder of the user's own recordings
    cache: str = "data"  # where prepared shards and features lie
    train: str = "train"  # manifest: DIR/STEM.csv, .tsv, .jsonl; timit: folder in DIR; or a TFDS split or slice
    valid: str = "valid"
    test: str = "test"
    valid_speakers: list[str] = field(default_factory=list)  # who of `train` is the validation split
    test_speakers: list[str] = field(default_factory=list)  # who of `test`, or else of `train`, is in the test split
    unscored: list[str] = field(default_factory=list)  # patterns of utterance names left out of valid and test: ["sa*"]
    audio: str = "audio"  # manifest: names of the columns, "" for none
    phones: str = "phones"  # phone string, blanks between phones
    text: str = "text"  # transcript in words
    alignment: str = "alignment"  # TextGrid or CTM file with the times of the phones
    speaker: str = "speaker"
    tier: str = "phones"  # of a TextGrid
    size: int = 2000  # tiny world: utterances to train on
    max_seconds: float = 30.0  # longer training utterances are left out and counted
    batch_size: int = 32
    sort_pool: int = 20  # batches that are sorted by length together
    on_error: str = "stop"  # stop | skip, at a recording or alignment that cannot be used

    def check(self) -> None:
        """Raises UserError for an unknown corpus, a missing folder name, or a value out of range."""
        public = self.corpus.startswith("tfds:") and self.corpus != "tfds:"
        if self.corpus not in ("tiny_world", "timit", "manifest") and not public:
            raise UserError(
                f"data.corpus: {self.corpus!r} is not one of tiny_world, timit, manifest, tfds:NAME[/CONFIG]"
            )
        if self.corpus in ("timit", "manifest") and not self.dir:
            raise UserError(f"data.dir: missing; data.corpus={self.corpus} reads data.dir=FOLDER")
        if self.corpus == "manifest" and not self.audio:
            raise UserError("data.audio: must name the manifest's column of sound files")
        check_choices("data", self, on_error=("stop", "skip"))
        check_bounds("data", self, low=1, names=("size", "batch_size", "sort_pool"))
        check_bounds("data", self, above=0, names=("max_seconds",))
        for name in ("cache", "train", "valid"):
            if not getattr(self, name):
                raise UserError(f"data.{name}: must not be empty")


@dataclass(frozen=True)
class FeaturesConfig:
    """What a frame is: the numbers that the model reads every few milliseconds."""

    kind: str = "log_mel"  # log_mel | mfcc
    sample_rate: int = 16000  # Hz; every recording is resampled to it
    window: float = 25.0  # milliseconds
    hop: float = 10.0  # milliseconds
    mels: int = 40
    coefficients: int = 13  # of mfcc
    energy: bool = True  # log energy of the window beside them
    deltas: int = 0  # 1: slopes beside the values, 2: slopes of the slopes, too
    normalize: str = "global"  # global | speaker | utterance | none
    stack: int = 1  # neighbouring frames read as one
    subsample: int = 1  # of which every so many is kept

    def check(self) -> None:
        """Raises UserError for an unknown kind or a value out of range."""
        check_choices("features", self, kind=("log_mel", "mfcc"), normalize=("global", "speaker", "utterance", "none"))
        check_bounds("features", self, low=4000, names=("sample_rate",))
        check_bounds("features", self, above=0, names=("window", "hop"))
        check_bounds("features", self, low=1, names=("mels", "coefficients", "stack", "subsample"))
        check_bounds("features", self, low=0, high=2, names=("deltas",))
        if self.hop > self.window:
            raise UserError(f"features.hop: {self.hop} is above features.window={self.window}; choose at most that")
        if self.kind == "mfcc" and self.coefficients > self.mels:
            raise UserError(
                f"features.coefficients: {self.coefficients} is above features.mels={self.mels}; choose fewer"
            )


@dataclass(frozen=True)
class AugmentConfig:
    """What makes more of the training split; the section `augment`. Nothing of it touches validation or test."""

    copies: int = 0  # of each recording, each with a speed, a gain and a noise drawn for it
    speeds: list[float] = field(default_factory=lambda: [0.9, 1.0, 1.1])
    gain: float = 6.0  # decibels up or down at most
    noise: list[float] = field(default_factory=list)  # lowest and highest signal-to-noise ratio in decibels; []: none
    frequency_masks: int = 0  # SpecAugment (Park et al. 2019), anew in every pass
    frequency_width: int = 8  # features at most
    time_masks: int = 0
    time_width: int = 20  # frames at most

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        names = ("copies", "gain", "frequency_masks", "frequency_width", "time_masks", "time_width")
        check_bounds("augment", self, low=0, names=names)
        if not self.speeds or min(self.speeds) < 0.5 or max(self.speeds) > 2:
            raise UserError(f"augment.speeds: {self.speeds} must be numbers from 0.5 to 2")
        if self.noise and (len(self.noise) != 2 or self.noise[0] > self.noise[1]):
            raise UserError(f"augment.noise: {self.noise} must be two numbers, the lowest first")
        if self.noise and not self.copies:
            raise UserError("augment.noise: is mixed into copies of the recordings; choose augment.copies=1 or more")


@dataclass(frozen=True)
class ModelConfig:
    """The recurrent layers over the frames and the heads on top of them."""

    cell: str = "lstm"  # simple | lstm | gru | layer_norm_lstm
    units: int = 128  # per direction
    layers: int = 2
    bidirectional: bool = True
    residual: bool = False
    head: str = "frames"  # frames | ctc | both
    labels: str = "phones"  # phones | characters, what the CTC head writes
    ctc_weight: float = 0.5  # of the CTC loss where both heads are trained
    look_ahead: int = 0  # frames that a one-directional model hears before it answers
    dropout_input: float = 0.0
    dropout_layers: float = 0.0
    dropout_output: float = 0.0
    start_from: str = ""  # run of this task whose recurrent layers this training starts from

    def check(self) -> None:
        """Raises UserError for an unknown kind, a value out of range, or a look-ahead of a model that hears it all."""
        check_choices("model", self, cell=("simple", "lstm", "gru", "layer_norm_lstm"), head=("frames", "ctc", "both"))
        check_choices("model", self, labels=("phones", "characters"))
        check_bounds("model", self, low=1, names=("units", "layers"))
        check_bounds("model", self, low=0, names=("look_ahead",))
        check_bounds("model", self, low=0, below=1, names=("dropout_input", "dropout_layers", "dropout_output"))
        check_bounds("model", self, low=0, high=1, names=("ctc_weight",))
        if self.bidirectional and self.look_ahead:
            raise UserError(
                f"model.look_ahead: {self.look_ahead} is for model.bidirectional=false; a model that reads both ways "
                "has heard everything; choose 0"
            )
        if self.head == "frames" and self.labels == "characters":
            raise UserError("model.labels: characters are what model.head=ctc or both writes; frames are phones")


@dataclass(frozen=True)
class DecodingConfig(config.DecodingConfig):
    """How phones are read off the probabilities; the section `decoding`."""

    path: str = "viterbi"  # frames: best | viterbi, through a bigram of the training phones
    min_frames: int = 2  # frames: shortest segment
    transition_weight: float = 1.0  # of the bigram's log probability
    head: str = ""  # frames | ctc, which of both heads is decoded; "": the frames' where there is one
    fold: str = ""  # timit39, or a file of lines `phone TAB folded phone`: phones that count as one in scores
    noise: list[float] = field(default_factory=list)  # [10]: mixed in at this signal-to-noise ratio in decibels
    window_seconds: float = 60.0  # longer recordings are recognised in windows of this length
    overlap_seconds: float = 5.0

    def check(self) -> None:
        """Raises UserError for a value outside its range or a mapping file that is missing."""
        super().check()
        check_choices("decoding", self, path=("best", "viterbi"), head=("", "frames", "ctc"), method=("greedy", "beam"))
        check_bounds("decoding", self, low=1, names=("min_frames",))
        check_bounds("decoding", self, low=0, names=("transition_weight", "overlap_seconds"))
        check_bounds("decoding", self, above=2 * self.overlap_seconds, names=("window_seconds",))
        if len(self.noise) > 1:
            raise UserError(f"decoding.noise: {self.noise} must be one ratio in decibels, or [] for none")
        if self.fold not in ("", "timit39") and not Path(self.fold).is_file():
            raise missing_path(self.fold, "mapping file")


@dataclass(frozen=True)
class SpeechConfig:
    """Everything that decides a speech run."""

    data: DataConfig = field(default_factory=DataConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    @property
    def writes_characters(self) -> bool:
        """Whether what is decoded are characters, not phones."""
        return self.model.labels == "characters" and (self.decoding.head or self.model.head) == "ctc"

    def check(self) -> None:
        """Raises UserError for options of one section that another one cannot serve."""
        if self.decoding.head and self.model.head not in (self.decoding.head, "both"):
            raise UserError(f"decoding.head: {self.decoding.head} was not trained, since model.head={self.model.head}")
        if self.decoding.language_model:
            takes_part = "decoding.language_model: takes part in the beam of CTC"
            if self.model.head == "frames":
                raise UserError(f"{takes_part}, but model.head=frames has no CTC head")
            if (self.decoding.head or self.model.head) != "ctc":
                raise UserError(f"{takes_part}; choose decoding.head=ctc")
            if self.decoding.method != "beam":
                raise UserError(f"{takes_part}; choose decoding.method=beam")
        if self.training.label_smoothing:
            raise UserError("training.label_smoothing: has no meaning for CTC and frames here; choose 0")
