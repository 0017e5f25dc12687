"""Features: vocabularies of the training split alone, one or two of them, that survive being saved."""

import json

import pytest
import tensorflow as tf

from shared.config import UserError
from shared.task import Corpus
from shared.text import UNK
from tasks.translation.config import DataConfig, TranslationConfig, VocabularyConfig
from tasks.translation.features import fit, load

PAIRS = {
    "train": [("the cat sees the dog", "die Katze sieht den Hund"), ("two dogs", "zwei Hunde")] * 3,
    "valid": [("a zebra", "ein Zebra")],
}


def corpus_of(pairs):
    def opened(split):
        source, target = zip(*pairs[split], strict=True)
        return tf.data.Dataset.from_tensor_slices(
            {"id": list(range(len(source))), "source": list(source), "target": list(target)}
        )

    sizes = {split: len(lines) for split, lines in pairs.items()}
    return Corpus(splits={split: lambda split=split: opened(split) for split in pairs}, sizes=sizes, name="pets")


def configured(**vocabulary):
    options = {"unit": "word", "size": 100} | vocabulary
    return TranslationConfig(vocabulary=VocabularyConfig(**options))


def test_a_joint_vocabulary_is_one_object_of_both_languages(tmp_path):
    config = configured(joint=True)
    features = fit(config, corpus_of(PAIRS))
    assert features.source is features.target
    assert {"▁cat", "▁Katze"} <= set(features.source.tokens())
    features.save(tmp_path / "features")
    assert "vocabulary.json" in {path.name for path in (tmp_path / "features").iterdir()}
    loaded = load(config, tmp_path / "features")
    assert loaded.source is loaded.target
    assert loaded.source.tokens() == features.source.tokens()


def test_separate_vocabularies_know_one_language_each(tmp_path):
    config = configured(joint=False)
    features = fit(config, corpus_of(PAIRS))
    assert "▁cat" in features.source.tokens()
    assert "▁cat" not in features.target.tokens()
    assert "▁Katze" in features.target.tokens()
    assert "▁Katze" not in features.source.tokens()
    features.save(tmp_path)
    assert {"source.json", "target.json"} <= {path.name for path in tmp_path.iterdir()}
    loaded = load(config, tmp_path)
    assert loaded.source.tokens() == features.source.tokens()
    assert loaded.target.tokens() == features.target.tokens()


@pytest.mark.parametrize("joint", [True, False])
def test_only_the_training_split_is_learned_from(joint):
    features = fit(configured(joint=joint, unit="character"), corpus_of(PAIRS))
    assert UNK in features.source.encode(["a zebra"])[0]
    assert UNK in features.target.encode(["ein Zebra"])[0]
    assert UNK not in features.source.encode(["a cat"])[0]


def test_the_section_reaches_the_vocabulary():
    features = fit(configured(size=8, lowercase=True, min_count=4), corpus_of(PAIRS))
    assert len(features.source) <= 8
    assert features.source.unit == "word"
    assert features.source.tokens()[4:] == ["▁the"]
    assert features.target.encode(["THE"]) == features.target.encode(["the"])


def test_a_corpus_without_text_is_one_line():
    with pytest.raises(UserError, match=r"^vocabulary: no text [^\n]*target[^\n]*pets[^\n]*$"):
        fit(configured(joint=False), corpus_of({"train": [("a cat", "")]}))


@pytest.mark.parametrize("name", ["vocabulary.json", "statistics.json"])
@pytest.mark.parametrize("damage", ["missing", "half"])
def test_damaged_features_are_one_line(tmp_path, name, damage):
    config = configured()
    fit(config, corpus_of(PAIRS)).save(tmp_path)
    if damage == "missing":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text((tmp_path / name).read_text()[:9])
    with pytest.raises(UserError, match=rf"^[^\n]*{name}: [^\n]*$"):
        load(config, tmp_path)


def test_pairs_that_are_too_long_or_empty_are_not_counted(tmp_path):
    pairs = [("one two three", "eins"), ("one", "eins zwei drei"), ("one two", "eins zwei"), ("", "eins"), ("one", "")]
    config = TranslationConfig(data=DataConfig(max_length=2), vocabulary=VocabularyConfig(unit="word"))
    features = fit(config, corpus_of({"train": pairs}))
    assert features.num_pairs == 1
    features.save(tmp_path)
    assert load(config, tmp_path).num_pairs == 1
    assert json.loads((tmp_path / "statistics.json").read_text()) == {"num_pairs": 1}
    with pytest.raises(UserError, match=r"data\.max_length"):
        fit(config, corpus_of({"train": pairs[:2]}))
