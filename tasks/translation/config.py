"""The typed configuration of the translation task: sections with their defaults, and the checks that need no data."""

from dataclasses import dataclass, field

from shared import config
from shared.config import DecodingConfig, TrainingConfig, UserError, check_bounds, check_choices


@dataclass(frozen=True)
class DataConfig:
    """Where sentence pairs come from and how they are batched."""

    corpus: str = "tiny_world"  # tiny_world | files | tfds:NAME[/CONFIG]
    dir: str = ""  # folder of the user's own files
    cache: str = "data"  # where prepared shards lie
    source: str = "en"  # languages: suffixes of files, names of columns, or TFDS feature names
    target: str = "de"
    train: str = "train"  # DIR/STEM.LANGUAGE[.gz] or DIR/STEM.tsv[.gz]; or names or slices of TFDS splits
    valid: str = "valid"
    test: str = "test"
    columns: list[str] = field(default_factory=list)  # languages of a TSV's columns; []: [source, target]
    size: int = 40000  # tiny world: scenes to train on
    max_length: int = 100  # tokens; longer training pairs are left out and counted
    batch_size: int = 64
    sort_pool: int = 50  # batches that are sorted by length together
    shuffle_buffer: int = 100000
    on_error: str = "stop"  # stop | skip, at a line that is not valid UTF-8

    def check(self) -> None:
        """Raises UserError for an unknown corpus, a missing folder name, or languages that do not fit."""
        self._check_corpus()
        check_choices("data", self, on_error=("stop", "skip"))
        positive = ("size", "max_length", "batch_size", "sort_pool", "shuffle_buffer")
        check_bounds("data", self, low=1, names=positive)
        for name in ("cache", "source", "target", "train", "valid", "test"):
            if not getattr(self, name):
                raise UserError(f"data.{name}: must not be empty")
        if self.source == self.target:
            raise UserError(f"data.target: {self.target!r} is also data.source; choose two languages")
        for name in ("source", "target"):
            if self.columns and getattr(self, name) not in self.columns:
                columns = ", ".join(self.columns)
                raise UserError(
                    f"data.{name}: {getattr(self, name)!r} is not in data.columns=[{columns}]; add it there"
                )

    def _check_corpus(self) -> None:
        if not self.corpus.startswith("tfds:"):
            check_choices("data", self, corpus=("tiny_world", "files", "tfds:NAME"))
        if self.corpus in ("tfds:", "tfds:NAME"):
            raise UserError(f"data.corpus: {self.corpus!r} names no dataset; write it as tfds:NAME or tfds:NAME/CONFIG")
        if self.corpus == "files" and not self.dir:
            raise UserError("data.dir: is empty, but data.corpus=files reads from it; add data.dir=FOLDER")
        for name in ("source", "target"):
            if self.corpus == "tiny_world" and getattr(self, name) not in ("en", "de"):
                raise UserError(
                    f"data.{name}: {getattr(self, name)!r} is not told in data.corpus=tiny_world; choose en or de"
                )


@dataclass(frozen=True)
class VocabularyConfig(config.VocabularyConfig):
    """What a token is; the section `vocabulary`."""

    unit: str = "bpe"  # bpe | unigram | word | whitespace | character
    size: int = 8000  # upper bound, the four special tokens included; 0: all words or characters
    joint: bool = True  # one vocabulary for both languages


@dataclass(frozen=True)
class ModelConfig:
    """The encoder, the attention and the decoder."""

    cell: str = "lstm"  # simple | lstm | gru | layer_norm_lstm
    embedding_units: int = 256
    encoder_units: int = 256  # per direction
    encoder_layers: int = 1
    bidirectional: bool = True
    decoder_units: int = 256
    decoder_layers: int = 2  # the attention sits between the first and the second
    attention: str = "additive"  # additive | dot | none
    attention_units: int = 256
    input_feeding: bool = False  # the first decoder layer also reads where the attention looked last
    tie_embeddings: bool = True  # output matrix = target embedding; with a joint vocabulary the source's, too
    residual: bool = False
    dropout_embedding: float = 0.0
    dropout_memory: float = 0.0
    dropout_output: float = 0.0
    dropout_layers: float = 0.0

    def check(self) -> None:
        """Raises UserError for an unknown kind, a size below one, or an attention with no layer above it."""
        check_choices("model", self, cell=("simple", "lstm", "gru", "layer_norm_lstm"))
        check_choices("model", self, attention=("additive", "dot", "none"))
        sizes = ("embedding_units", "encoder_units", "encoder_layers")
        sizes += ("decoder_units", "decoder_layers", "attention_units")
        check_bounds("model", self, low=1, names=sizes)
        dropouts = ("dropout_embedding", "dropout_memory", "dropout_output", "dropout_layers")
        check_bounds("model", self, low=0, below=1, names=dropouts)
        if self.attention != "none" and self.decoder_layers < 2:
            raise UserError(
                f"model.decoder_layers: {self.decoder_layers} is too few, since model.attention={self.attention} sits "
                "between the first and the second layer; choose at least 2, or model.attention=none"
            )
        if self.attention == "none" and self.input_feeding:
            raise UserError(
                "model.input_feeding: true feeds what model.attention found, but that is none; choose false"
            )


@dataclass(frozen=True)
class TranslationConfig:
    """Everything that decides a translation run."""

    data: DataConfig = field(default_factory=DataConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def check(self) -> None:
        """Raises UserError for options of one section that another one cannot serve."""
        self.decoding.check_attention(self.model.attention)
