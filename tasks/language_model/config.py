"""The typed configuration of the language model: sections with their defaults, and the checks that need no data."""

from dataclasses import dataclass, field
from pathlib import Path

from shared import config
from shared.config import TrainingConfig, UserError, check_bounds, check_choices, missing_path

GAP = "___"  # stands for the missing word in what `fill` reads


def check_gap(text: str, name: str) -> None:
    """Raises UserError, which calls the text by `name`, unless it has exactly one gap."""
    if text.count(GAP) != 1:
        raise UserError(f"{name}: has {text.count(GAP)} gaps, but needs exactly one {GAP}")


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it is cut into streams and windows."""

    corpus: str = "tiny_world"  # tiny_world | files | tfds:NAME[/CONFIG]
    dir: str = ""  # folder of the user's own files, or one file that is cut into the three splits
    cache: str = "data"  # where prepared shards and ids lie
    language: str = "en"  # tiny world: en | de
    train: str = "train"  # DIR/STEM.txt[.gz]; or names or slices of TFDS splits
    valid: str = "valid"
    test: str = "test"
    text: str = "text"  # the feature of a TFDS set that holds the text
    size: int = 40000  # tiny world: sentences to train on
    documents: str = "none"  # where the state starts anew: none | lines | blank_lines | examples (of a TFDS set)
    batch_size: int = 20  # streams read side by side, each a part of the training split
    window: int = 35  # steps through which the gradient is followed
    random_windows: bool = False  # windows of random lengths with that mean (Merity et al. 2018, section 4.1)
    on_error: str = "stop"  # stop | skip, at a line that is not valid UTF-8

    def check(self) -> None:
        """Raises UserError for an unknown corpus, a missing folder name, or documents that the corpus cannot have."""
        public = self.corpus.startswith("tfds:")
        if self.corpus not in ("tiny_world", "files") and not (public and self.corpus != "tfds:"):
            raise UserError(f"data.corpus: {self.corpus!r} is not one of tiny_world, files, tfds:NAME[/CONFIG]")
        if self.corpus == "files" and not self.dir:
            raise UserError(
                "data.dir: missing; data.corpus=files reads data.dir=FOLDER, or one text with data.dir=FILE"
            )
        check_choices("data", self, documents=("none", "lines", "blank_lines", "examples"), on_error=("stop", "skip"))
        if self.corpus == "tiny_world":
            check_choices("data", self, language=("en", "de"))
        if (self.documents == "examples") != (public and self.documents != "none"):
            choices = "none or examples" if public else "none, lines or blank_lines"
            raise UserError(
                f"data.documents: {self.documents} cannot be told in data.corpus={self.corpus}; choose {choices}"
            )
        check_bounds("data", self, low=1, names=("size", "batch_size", "window"))
        for name in ("cache", "train", "valid", "test", "text"):
            if not getattr(self, name):
                raise UserError(f"data.{name}: must not be empty")


@dataclass(frozen=True)
class VocabularyConfig(config.VocabularyConfig):
    """What a token is; the section `vocabulary`."""

    file: str = ""  # a vocabulary that was saved in another run, in place of a new one

    def check(self) -> None:
        """Raises UserError for a file that is missing or, without one, for what no vocabulary can be learned by."""
        if not self.file:
            super().check()
        elif not Path(self.file).is_file():
            raise missing_path(self.file, "vocabulary")


@dataclass(frozen=True)
class ModelConfig:
    """The recurrent layers between two embeddings, and what keeps them from learning the text by heart."""

    cell: str = "lstm"  # simple | relu | lstm | gru | layer_norm_lstm
    embedding_units: int = 200
    units: int = 200
    layers: int = 2
    unit_forget_bias: bool = True  # the forget gates of an LSTM are open at first, see RecurrentStack
    bidirectional: bool = False  # predicts each word from both sides, to fill gaps
    tie_embeddings: bool = True  # output matrix = embedding, and the last layer has embedding_units
    residual: bool = False
    dropout_words: float = 0.0  # whole words of the embedding (Gal & Ghahramani 2016)
    dropout_embedding: float = 0.0  # the other dropouts: one mask for all steps of a window (the same)
    dropout_layers: float = 0.0
    dropout_output: float = 0.0
    weight_drop: float = 0.0  # of the recurrent matrices (Merity, Keskar & Socher 2018)
    truncate: int = 0  # steps after which the gradient is cut inside a window (Williams & Peng 1990); 0: never
    zoneout: float = 0.0  # units of the state that keep their old value (Krueger et al. 2017)
    activation_penalty: float = 0.0  # on the square of what is read out (Merity, McCann & Socher 2017)
    change_penalty: float = 0.0  # on the square of its change from step to step (the same)
    samples: int = 0  # words that stand for all others in the training's softmax (Jean et al. 2015); 0: all words

    def check(self) -> None:
        """Raises UserError for an unknown cell, a value out of range, or residuals between layers of other sizes."""
        check_choices("model", self, cell=("simple", "relu", "lstm", "gru", "layer_norm_lstm"))
        check_bounds("model", self, low=1, names=("embedding_units", "units", "layers"))
        dropouts = ("dropout_words", "dropout_embedding", "dropout_layers", "dropout_output", "weight_drop", "zoneout")
        check_bounds("model", self, low=0, below=1, names=dropouts)
        check_bounds("model", self, low=0, names=("activation_penalty", "change_penalty", "samples", "truncate"))
        if not (self.unit_forget_bias or self.cell.endswith("lstm")):
            raise UserError(f"model.unit_forget_bias: false needs forget gates, and model.cell={self.cell} has none")
        if self.residual and len(set(self.layer_units)) > 1:
            raise UserError(
                f"model.residual: true adds layers of model.units={self.units} to one of "
                f"model.embedding_units={self.embedding_units}; choose equal ones, or model.tie_embeddings=false"
            )

    @property
    def layer_units(self) -> list[int]:
        """State size of every layer, lowest first."""
        tied = self.tie_embeddings and not self.bidirectional
        return [self.units] * (self.layers - 1) + [self.embedding_units if tied else self.units]


@dataclass(frozen=True)
class DecodingConfig(config.DecodingConfig):
    """How a text is scored and written; the section `decoding`."""

    method: str = "sample"  # greedy | beam | sample
    max_tokens: int = 100  # of one written line
    streams: int = 1  # parts into which a split is cut for perplexity_stream: more are faster and lose context at cuts
    cache_size: int = 0  # last words that raise their own probability (Grave, Joulin & Usunier 2017); 0: off
    cache_flatness: float = 0.3  # theta there
    cache_weight: float = 0.1  # lambda there
    dynamic_rate: float = 0.0  # learning rate on the text that was just scored (Krause et al. 2018); 0: off
    dynamic_decay: float = 0.0  # share of the way back to the trained weights after each update
    dynamic_window: int = 10  # tokens between updates

    def check(self) -> None:
        """Raises UserError for a value outside its range."""
        super().check()
        check_bounds("decoding", self, low=1, names=("max_tokens", "streams", "dynamic_window"))
        check_bounds("decoding", self, low=0, names=("cache_size", "cache_flatness", "dynamic_rate"))
        check_bounds("decoding", self, low=0, high=1, names=("cache_weight", "dynamic_decay"))


@dataclass(frozen=True)
class LanguageModelConfig:
    """Everything that decides a language model's run."""

    data: DataConfig = field(default_factory=DataConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def check(self) -> None:
        """Raises UserError for options of one section that another one cannot serve."""
        self.decoding.check_attention("none")
        if self.model.bidirectional and self.decoding.cache_size + self.decoding.dynamic_rate > 0:
            raise UserError(
                "decoding.cache_size: needs model.bidirectional=false, as decoding.dynamic_rate does; choose 0"
            )
        if self.model.samples and self.training.label_smoothing:
            raise UserError(
                f"training.label_smoothing: {self.training.label_smoothing} cannot be combined with model.samples, "
                "which never sees all words; choose 0"
            )
