"""Features: a vocabulary of the training split alone that survives being saved; an end of line is a token."""

import numpy as np
import pytest
import tensorflow as tf

from shared.config import UserError
from shared.task import Corpus
from shared.text import EOS, UNK
from tasks.language_model.config import LanguageModelConfig, VocabularyConfig
from tasks.language_model.features import encoded, fit, load

TEXTS = {
    "train": ["the cat sees the dog\n", "two dogs\n", "\n", "the cat sleeps\nthe dog does not\n"] * 3,
    "valid": ["a zebra\n"],
}
TOKENS = 3 * (6 + 3 + 1 + 4 + 5)


def corpus_of(texts):
    def opened(split):
        columns = {"id": list(range(len(texts[split]))), "text": texts[split], "begins": [False] * len(texts[split])}
        return tf.data.Dataset.from_tensor_slices(columns)

    sizes = {split: len(lines) for split, lines in texts.items()}
    return Corpus(splits={split: lambda split=split: opened(split) for split in texts}, sizes=sizes, name="pets")


def configured(**vocabulary):
    return LanguageModelConfig(vocabulary=VocabularyConfig(**vocabulary))


def test_every_line_feed_is_an_end_and_nothing_else_is():
    features = fit(configured(), corpus_of(TEXTS))
    names = features.vocabulary.tokens()
    rows = features.encode(["the cat\n", "the cat", "\n", "", "two\n\ndogs <eos>\n"])
    assert [[names[index] for index in row] for row in rows] == [
        ["▁the", "▁cat", "<eos>"],
        ["▁the", "▁cat"],
        ["<eos>"],
        [],
        ["▁two", "<eos>", "<eos>", "▁dogs", *["<unk>"] * 3, "<eos>"],
    ]
    assert features.encode([]) == []


@pytest.mark.parametrize("unit", ["word", "whitespace", "character", "bpe"])
def test_ids_come_out_in_the_order_of_the_text_with_their_ends(unit):
    corpus = corpus_of(TEXTS)
    features = fit(configured(unit=unit, size=40 if unit == "bpe" else 0), corpus)
    ids = [index for row in features.encode(TEXTS["train"]) for index in row]
    assert ids.count(EOS) == 15 and (unit == "bpe" or UNK not in ids)
    assert unit in ("bpe", "character") or len(ids) == TOKENS
    assert np.concatenate([some for some, _, _ in encoded(corpus.splits["train"](), features)]).tolist() == ids


def test_only_the_training_split_is_learned_from():
    features = fit(configured(unit="character"), corpus_of(TEXTS))
    assert UNK in features.encode(["a zebra\n"])[0] and UNK not in features.encode(["a cat\n"])[0]


def test_the_section_reaches_the_vocabulary():
    features = fit(configured(size=8, lowercase=True, min_count=6), corpus_of(TEXTS))
    assert set(features.vocabulary.tokens()[4:]) <= {"▁the", "▁cat", "▁dog"} and len(features.vocabulary) <= 8
    assert features.encode(["THE"]) == features.encode(["the"]) != [[UNK]]


def test_a_vocabulary_of_another_run_takes_the_place_of_a_new_one(tmp_path):
    first = fit(configured(), corpus_of({"train": ["a zebra and a cat\n"] * 5}))
    first.save(tmp_path)
    second = fit(configured(file=str(tmp_path / "vocabulary.json")), corpus_of(TEXTS))
    assert second.vocabulary.tokens() == first.vocabulary.tokens()
    assert second.vocabulary.digest() == first.vocabulary.digest()
    (tmp_path / "vocabulary.json").write_text("{")
    with pytest.raises(UserError, match=r"^[^\n]*vocabulary\.json: cannot be read: [^\n]*$"):
        fit(configured(file=str(tmp_path / "vocabulary.json")), corpus_of(TEXTS))


def test_what_was_saved_is_loaded(tmp_path):
    features = fit(configured(unit="character"), corpus_of(TEXTS))
    features.save(tmp_path / "features")
    loaded = load(configured(unit="character"), tmp_path / "features")
    assert loaded.vocabulary.tokens() == features.vocabulary.tokens()
    assert loaded.encode(TEXTS["train"]) == features.encode(TEXTS["train"])


@pytest.mark.parametrize("damage", ["missing", "half", "empty"])
def test_damaged_features_are_one_line(tmp_path, damage):
    name = "vocabulary.json"
    fit(configured(), corpus_of(TEXTS)).save(tmp_path)
    if damage == "missing":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text((tmp_path / name).read_text()[: 9 if damage == "half" else 0])
    with pytest.raises(UserError, match=rf"^[^\n]*{name}: [^\n]*$"):
        load(configured(), tmp_path)


@pytest.mark.parametrize("texts", [["\n"] * 9, [" \n", "\t\n"]])
def test_a_corpus_without_text_is_one_line(texts):
    with pytest.raises(UserError, match=r"^vocabulary: no text [^\n]*pets[^\n]*$"):
        fit(configured(), corpus_of({"train": texts}))


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        (["ha ha ha\n", "ha\n"] * 9, {}),
        (["the cat the\n"] * 9 + ["dog\n"], {"min_count": 12}),
        (["a\n"] * 9, {"unit": "word"}),
    ],
)
def test_one_word_is_nothing_to_predict(texts, options):
    with pytest.raises(UserError, match=r"^vocabulary: pets has but one word, '(ha|the|a)'[^\n]*$"):
        fit(configured(**options), corpus_of({"train": texts}))
