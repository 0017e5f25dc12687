"""The typed configuration of the captioning task: sections with their defaults, and the checks that need no data."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from shutil import which

from shared import config
from shared.config import TrainingConfig, UserError, check_bounds, check_choices

FILES = ("captions", "coco", "karpathy", "flickr8k")  # kinds of the user's own files
OWN_ENCODER = "small"  # the convolutional network of tasks.captioning.features
# The others are those of keras.applications, named here so that a wrong name is told at once.
ENCODERS = (
    OWN_ENCODER,
    *(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
    *("DenseNet121", "DenseNet169", "DenseNet201", "InceptionResNetV2", "InceptionV3", "Xception"),
    *(f"EfficientNetB{number}" for number in range(8)),
    *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "NASNetMobile", "NASNetLarge"),
    *(f"ResNet{depth}{version}" for depth in (50, 101, 152) for version in ("", "V2")),
    *("VGG16", "VGG19"),
)


@dataclass(frozen=True)
class DataConfig:
    """Where pictures and captions come from and how they are batched."""

    corpus: str = "tiny_world"  # tiny_world | captions | coco | karpathy | flickr8k | tfds:NAME[/CONFIG]
    dir: str = ""  # folder of the user's own files
    cache: str = "data"  # where prepared shards and computed regions lie
    images: str = ""  # folder of the pictures in DIR
    captions: str = ""  # flickr8k: the token file in DIR; karpathy: the JSON file in DIR; TFDS: its texts
    train: str = "train"  # captions: DIR/STEM.tsv, .csv, .json, .jsonl; coco, flickr8k: a file in DIR; or a TFDS split
    valid: str = "valid"
    test: str = "test"
    language: str = "en"  # tiny world: en | de
    size: int = 8000  # tiny world: pictures to train on
    max_length: int = 60  # tokens; longer training captions are left out and counted
    max_pixels: int = 50_000_000  # larger pictures are refused before they are decoded
    batch_size: int = 64  # captions
    captions_per_picture: int = 1  # that a batch holds of each picture, which is seen once for all of them
    sort_pool: int = 20  # batches that are sorted by length together; 1 where the small encoder is trained
    on_error: str = "stop"  # stop | skip, at a picture or caption that cannot be used

    def check(self) -> None:
        """Raises UserError for an unknown corpus, a missing folder name, or a value out of range."""
        public = self.corpus.startswith("tfds:") and self.corpus != "tfds:"
        if self.corpus not in ("tiny_world", *FILES) and not public:
            raise UserError(
                f"data.corpus: {self.corpus!r} is not one of tiny_world, {', '.join(FILES)}, tfds:NAME[/CONFIG]"
            )
        if self.corpus in FILES and not self.dir:
            raise UserError(f"data.dir: missing; data.corpus={self.corpus} reads data.dir=FOLDER")
        if self.corpus in ("karpathy", "flickr8k") and not self.captions:
            raise UserError(f"data.captions: missing; data.corpus={self.corpus} reads the captions from that file")
        check_choices("data", self, on_error=("stop", "skip"))
        if self.corpus == "tiny_world":
            check_choices("data", self, language=("en", "de"))
        check_bounds("data", self, low=1, names=("size", "max_length", "max_pixels", "batch_size", "sort_pool"))
        check_bounds("data", self, low=1, high=self.batch_size, names=("captions_per_picture",))
        for name in ("cache", "train", "valid"):
            if not getattr(self, name):
                raise UserError(f"data.{name}: must not be empty")


@dataclass(frozen=True)
class VocabularyConfig(config.VocabularyConfig):
    """What a token is; the section `vocabulary`."""

    lowercase: bool = True


@dataclass(frozen=True)
class AugmentConfig:
    """What changes the pictures in training, where the encoder is trained, too; the section `augment`."""

    flip: bool = False  # left and right exchanged, in half of the pictures; with flip_words where captions tell them
    flip_words: str = ""  # "left right": pairs of words that are exchanged in the captions of those
    shift: float = 0.0  # share of the picture's size that it is moved by at most, across and down
    brightness: float = 0.0  # share of the full range that is added or taken at most
    contrast: float = 0.0  # share by which differences from the mean become larger or smaller at most

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        check_bounds("augment", self, low=0, below=1, names=("shift", "brightness", "contrast"))
        words = self.flip_words.lower().split()
        if len(words) % 2 or len(set(words)) < len(words):
            raise UserError(f"augment.flip_words: {self.flip_words!r} is not pairs of words, such as 'left right'")
        if words and not self.flip:
            raise UserError("augment.flip_words: are of captions of flipped pictures; choose augment.flip=true")


@dataclass(frozen=True)
class ModelConfig:
    """The encoder, the attention over its grid, and the decoder."""

    encoder: str = OWN_ENCODER  # small | MobileNetV2 | ResNet50 | EfficientNetB0 | ...: see ENCODERS
    weights: str = ""  # of an encoder of keras.applications: imagenet | FILE.weights.h5 | "" for none
    train_encoder: bool = True  # false: its regions are computed once, and the decoder trains at the speed of text
    encoder_rate: float = 1.0  # learning rate of a trained encoder, as a share of training.learning_rate
    image_size: int = 80  # pixels, both ways; pictures are squashed to it
    channels: int = 16  # small: of the first layer; the others have two, four and eight times as many
    memory_units: int = 256  # what a region is projected to before the attention reads it
    cell: str = "lstm"  # simple | lstm | gru | layer_norm_lstm
    embedding_units: int = 128
    units: int = 256
    layers: int = 2  # recurrent; the attention sits between the first and the second
    attention: str = "additive"  # additive | dot | none
    attention_units: int = 128
    feed_summary: bool = False  # whether what the picture is as a whole is read beside every word
    gate: str = "none"  # none | gate | sentinel: how a word that no region shows is written
    attention_penalty: float = 0.0  # weight of the doubly stochastic regularisation
    attention_supervision: float = 0.0  # weight of telling where what a word names is to be seen; tiny world
    look_alikes: bool = False  # whether each region also knows how much of the picture looks like it, and where
    coordinates: float = 0.0  # beside what a region shows where it is: 0 at the centre, this at the edges
    tie_embeddings: bool = True
    dropout_embedding: float = 0.0
    dropout_memory: float = 0.0
    dropout_output: float = 0.0
    dropout_layers: float = 0.0
    scheduled_sampling: float = 0.0  # share of the words read in training that the model wrote itself
    start_from: str = ""  # run of this task whose weights this training starts from

    @property
    def normalises_batches(self) -> bool:
        """Whether the encoder is trained with the statistics of each batch; those that come trained keep theirs."""
        return self.encoder == OWN_ENCODER and self.train_encoder

    def check(self) -> None:
        """Raises UserError for an unknown kind, a size below one, or options that need attention without any."""
        check_choices("model", self, cell=("simple", "lstm", "gru", "layer_norm_lstm"))
        check_choices("model", self, attention=("additive", "dot", "none"))
        check_choices("model", self, encoder=ENCODERS)
        check_choices("model", self, gate=("none", "gate", "sentinel"))
        sizes = ("image_size", "channels", "memory_units", "embedding_units", "units", "layers", "attention_units")
        check_bounds("model", self, low=1, names=sizes)
        check_bounds("model", self, low=32, names=("image_size",))
        check_bounds("model", self, low=0, names=("attention_penalty", "attention_supervision", "coordinates"))
        check_bounds("model", self, low=0, high=1, names=("encoder_rate",))
        shares = ("dropout_embedding", "dropout_memory", "dropout_output", "dropout_layers", "scheduled_sampling")
        check_bounds("model", self, low=0, below=1, names=shares)
        if self.attention != "none" and self.layers < 2:
            raise UserError(
                f"model.layers: {self.layers} is too few, since model.attention={self.attention} sits between the "
                "first and the second layer; choose at least 2, or model.attention=none"
            )
        about_attention = {
            "gate": self.gate != "none",
            **{name: getattr(self, name) for name in ("attention_penalty", "attention_supervision", "coordinates")},
        }
        if self.attention == "none" and (key := next(filter(about_attention.get, about_attention), "")):
            raise UserError(f"model.{key}: is about the attention, but model.attention is none")
        if self.encoder == OWN_ENCODER and self.weights:
            raise UserError(f"model.weights: are for encoders of keras.applications, not model.encoder={OWN_ENCODER}")
        if not self.train_encoder and not self.weights and not self.start_from:
            raise UserError(
                "model.train_encoder: false leaves the encoder as it was drawn at random; name model.weights or "
                "model.start_from, or choose true"
            )


@dataclass(frozen=True)
class CaptionTrainingConfig(TrainingConfig):
    """How the weights are found; the section `training`."""

    objective: str = "words"  # words | cider: cross-entropy, or self-critical training on CIDEr

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        super().check()
        check_choices("training", self, objective=("words", "cider"))


@dataclass(frozen=True)
class DecodingConfig(config.DecodingConfig):
    """How a caption is searched for; the section `decoding`."""

    max_length: int = 40  # tokens of the longest caption; a picture has no length of its own to go by
    meteor: bool = False  # also METEOR and SPICE, which are for English and need Java and the package pycocoevalcap

    def check(self) -> None:
        """Raises UserError for a value outside its range, or METEOR without what it needs."""
        super().check()
        check_bounds("decoding", self, low=1, names=("max_length",))
        needed = {"Java": which("java"), "the package pycocoevalcap": find_spec("pycocoevalcap")}
        if self.meteor and not all(needed.values()):
            missing = " and ".join(name for name, found in needed.items() if not found)
            raise UserError(f"decoding.meteor: true needs {missing}; install what is missing, or choose false")


@dataclass(frozen=True)
class CaptioningConfig:
    """Everything that decides a captioning run."""

    data: DataConfig = field(default_factory=DataConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: CaptionTrainingConfig = field(default_factory=CaptionTrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def check(self) -> None:
        """Raises UserError for options of one section that another one cannot serve."""
        self.decoding.check_attention(self.model.attention)
        if self.augment != AugmentConfig() and not self.model.train_encoder:
            raise UserError(
                "augment: changes pictures, but with model.train_encoder=false each is seen once; choose true"
            )
        if self.model.attention_supervision:
            self._check_supervision()
        if self.training.objective == "cider" and not self.model.start_from:
            raise UserError(
                "training.objective: cider rewards captions that the model writes itself, so it must know how to; "
                "name the run that does in model.start_from"
            )
        of_words = {
            "model.scheduled_sampling": self.model.scheduled_sampling,
            "model.attention_supervision": self.model.attention_supervision,
            "training.label_smoothing": self.training.label_smoothing,
        }
        if self.training.objective == "cider" and (key := next(filter(of_words.get, of_words), "")):
            raise UserError(f"{key}: belongs to training.objective=words; choose 0")

    def _check_supervision(self) -> None:
        faults = {
            "only data.corpus=tiny_world tells where things are": self.data.corpus != "tiny_world",
            "a token has to be a word: vocabulary.unit=word": self.vocabulary.unit != "word",
            "things would not be where they are said to be: augment.shift=0": self.augment.shift > 0,
            "captions would say left for right: augment.flip=false, or augment.flip_words": (
                self.augment.flip and not self.augment.flip_words
            ),
        }
        if fault := next(filter(faults.get, faults), ""):
            raise UserError(f"model.attention_supervision: {fault}; choose that, or 0")
