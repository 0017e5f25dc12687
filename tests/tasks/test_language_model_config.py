"""The language model's configuration: what cannot work is one line that names the key, the value and the remedy."""

import pytest

from shared.config import UserError, load_config
from tasks.language_model.config import LanguageModelConfig, ModelConfig

PUBLIC = "data.corpus=tfds:tiny_shakespeare"
FILES = ["data.corpus=files", "data.dir=texts"]


@pytest.fixture
def load(tmp_path):
    """Overrides -> configuration."""
    path = tmp_path / "text.yaml"
    path.write_text("# all by overrides\n")
    return lambda *overrides: load_config(LanguageModelConfig, path, overrides)


def test_the_defaults_pass_their_own_checks(load):
    assert load() == LanguageModelConfig()
    assert load().decoding.method == "sample"


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.cell=layer_norm_lstm", "model.zoneout=0.1", "model.truncate=5"],
        [PUBLIC, "data.documents=examples"],
        [*FILES, "data.documents=blank_lines"],
        ["data.documents=lines"],
        ["vocabulary.unit=bpe", "vocabulary.size=8"],
        ["vocabulary.unit=character", "vocabulary.size=0"],
        ["model.residual=true", "model.tie_embeddings=false", "model.units=7"],
        ["model.residual=true", "model.bidirectional=true", "model.units=7"],
        ["model.samples=5", "training.label_smoothing=0"],
        ["decoding.temperature=0", "decoding.cache_size=0", "decoding.cache_weight=1", "decoding.dynamic_decay=1"],
        ["decoding.cache_size=3", "decoding.dynamic_rate=0.1"],
    ],
)
def test_what_can_work_is_taken(load, overrides):
    assert load(*overrides)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.corpus=wikipedia"], ["data.corpus: 'wikipedia'", "tiny_world, files, tfds:NAME"]),
        (["data.corpus=tfds:"], ["data.corpus: 'tfds:'"]),
        (["data.corpus=files"], ["data.dir: missing"]),
        (["data.language=fr"], ["data.language: 'fr'", "en, de"]),
        (["data.documents=chapters"], ["data.documents: 'chapters'"]),
        (["data.documents=examples"], ["data.documents: examples", "tiny_world", "none, lines or blank_lines"]),
        ([*FILES, "data.documents=examples"], ["data.documents: examples", "files"]),
        ([PUBLIC, "data.documents=lines"], ["data.documents: lines", "none or examples"]),
        (["data.on_error=ignore"], ["data.on_error: 'ignore'", "stop, skip"]),
        (["data.size=0"], ["data.size: 0"]),
        (["data.batch_size=0"], ["data.batch_size: 0"]),
        (["data.window=0"], ["data.window: 0"]),
        (["data.valid="], ["data.valid: must not be empty"]),
        (["vocabulary.unit=syllable"], ["vocabulary.unit: 'syllable'"]),
        (["vocabulary.unit=bpe"], ["vocabulary.size: 0", "at least 8"]),
        (["vocabulary.size=7"], ["vocabulary.size: 7", "or 0 for all"]),
        (["vocabulary.unit=unigram", "vocabulary.size=7"], ["vocabulary.size: 7", "at least 8"]),
        (["vocabulary.min_count=0"], ["vocabulary.min_count: 0"]),
        (["vocabulary.file=nowhere/vocabulary.json"], ["nowhere/vocabulary.json: no such vocabulary"]),
        (["model.cell=rnn"], ["model.cell: 'rnn'"]),
        (["model.layers=0"], ["model.layers: 0"]),
        (["model.dropout_words=1"], ["model.dropout_words: 1", "below 1"]),
        (["model.weight_drop=-0.1"], ["model.weight_drop: -0.1"]),
        (["model.zoneout=1"], ["model.zoneout: 1", "below 1"]),
        (["model.cell=gru", "model.unit_forget_bias=false"], ["model.unit_forget_bias: false", "model.cell=gru"]),
        (["model.truncate=-1"], ["model.truncate: -1"]),
        (["model.activation_penalty=-1"], ["model.activation_penalty: -1"]),
        (["model.samples=-1"], ["model.samples: -1"]),
        (["model.residual=true", "model.units=7"], ["model.residual: true", "model.units=7", "tie_embeddings=false"]),
        (["model.samples=5", "training.label_smoothing=0.1"], ["training.label_smoothing: 0.1", "choose 0"]),
        (["model.bidirectional=true", "decoding.cache_size=5"], ["decoding.cache_size", "choose 0"]),
        (["model.bidirectional=true", "decoding.dynamic_rate=0.1"], ["decoding.dynamic_rate", "choose 0"]),
        (["decoding.max_tokens=0"], ["decoding.max_tokens: 0"]),
        (["decoding.streams=0"], ["decoding.streams: 0"]),
        (["decoding.cache_weight=1.1"], ["decoding.cache_weight: 1.1"]),
        (["decoding.cache_flatness=-1"], ["decoding.cache_flatness: -1"]),
        (["decoding.dynamic_window=0"], ["decoding.dynamic_window: 0"]),
        (["decoding.dynamic_decay=2"], ["decoding.dynamic_decay: 2"]),
        (["decoding.temperature=-1"], ["decoding.temperature: -1"]),
    ],
)
def test_what_cannot_work_is_one_line(load, overrides, parts):
    with pytest.raises(UserError) as caught:
        load(*overrides)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_a_vocabulary_that_is_there_needs_no_size(load, tmp_path):
    (tmp_path / "vocabulary.json").touch()
    assert load(f"vocabulary.file={tmp_path / 'vocabulary.json'}", "vocabulary.unit=bpe")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_only_a_tied_forward_model_ends_in_the_size_of_its_embedding(tied, bidirectional):
    config = ModelConfig(layers=3, units=7, embedding_units=5, tie_embeddings=tied, bidirectional=bidirectional)
    assert config.layer_units == [7, 7, 5 if tied and not bidirectional else 7]
