"""Vocabularies: text comes back as it was, whatever the unit, and training depends on the text alone."""

import random
import time
import unicodedata

import pytest

from shared.text import BOS, EOS, PAD, UNK, Vocabulary

UNITS = ["bpe", "unigram", "word", "whitespace", "character"]
SUBWORDS = ["bpe", "unigram"]
SYLLABLES = ["ba", "be", "schl", "ück", "ge", "né", "ist", "a", "日本", "ß", "Å", "İz", "12"]
MARKS = [",", ".", "!", "-", "'", "„", "“", "(", ")", "<eos>", "<unk>", "$", "€", "😀", "👨‍👩‍👧", "_", "…", "/", '"']
BLANKS = [" ", " ", " ", "  ", "\t", "\u00a0", "\u2028", "\x1c"]
STRANGE = ["▁", "e\u0301", "J\u030c", "K", "\u200b", "\ufeff", "\x00", "ﬁ", "𝒳"]


def random_texts(count, seed, pieces=tuple(SYLLABLES + MARKS + BLANKS)):
    draw = random.Random(seed)
    return ["".join(draw.choices(pieces, k=draw.randint(0, 25))) for _ in range(count)]


def normal(text):
    return " ".join(unicodedata.normalize("NFC", text).replace("▁", "_").split())


def trained(unit, texts, **options):
    options = {"size": 400 if unit in SUBWORDS else 0} | options
    return Vocabulary.train(iter(texts), unit=unit, **options)


@pytest.mark.parametrize("unit", UNITS)
def test_seen_text_comes_back_exactly(unit):
    texts = random_texts(300, seed=1) + random_texts(200, seed=2, pieces=tuple(SYLLABLES + STRANGE + BLANKS + MARKS))
    vocabulary = trained(unit, texts)
    encoded = vocabulary.encode(texts)
    assert not any(index <= UNK for ids in encoded for index in ids)
    assert [vocabulary.decode(ids) for ids in encoded] == [normal(text) for text in texts]


@pytest.mark.parametrize("unit", ["bpe", "unigram", "character"])
def test_new_text_of_known_characters_comes_back_exactly(unit):
    texts = random_texts(300, seed=1)
    vocabulary = trained(unit, texts)
    for text in random_texts(300, seed=3):
        assert vocabulary.decode(vocabulary.encode([text])[0]) == normal(text)


def test_punctuation_keeps_its_side_of_the_blank_in_whole_words():
    text = "Ich sehe, dass »er« (heute) nicht-schläft ."
    vocabulary = trained("word", [text])
    display = [piece for _, piece, _ in vocabulary.pieces(text)]
    assert display == [
        "▁Ich",
        "▁sehe",
        ",",
        "▁dass",
        "▁»",
        "er",
        "«",
        "▁(",
        "heute",
        ")",
        "▁nicht",
        "-",
        "schläft",
        "▁.",
    ]
    assert vocabulary.decode(vocabulary.encode([text])[0]) == text


def test_text_that_is_tokenised_already_is_cut_at_blanks_alone():
    text = "mr. <unk> does n't  pay $ N (a.b) \u2581x ▁"
    vocabulary = trained("whitespace", [text, "<unk> <unk>"])
    words = ["mr.", "<unk>", "does", "n't", "pay", "$", "N", "(a.b)", "_x", "_"]
    ids = vocabulary.encode([text])[0]
    assert [vocabulary.tokens()[index] for index in ids] == [f"▁{word}" for word in words]
    assert len(vocabulary) == len(words) + 4
    assert vocabulary.decode(ids) == " ".join(words)
    assert ids[1] == 4 and vocabulary.encode(["<unk>x"]) == [[UNK]]  # the most frequent word, and an unknown one


@pytest.mark.parametrize("unit", UNITS)
def test_special_tokens_have_fixed_ids_that_no_text_reaches(unit):
    text = "<pad> a<bos>b <eos> <unk>"
    vocabulary = trained(unit, [text] * 3)
    assert vocabulary.tokens()[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)
    ids = vocabulary.encode([text])[0]
    assert min(ids) > UNK
    assert vocabulary.decode(ids) == text


@pytest.mark.parametrize("unit", UNITS)
def test_decoding_stops_at_the_first_end_and_skips_padding(unit):
    vocabulary = trained(unit, ["ein Baum und ein Haus"] * 5)
    ids, more = vocabulary.encode(["ein Baum", "ein Haus"])
    assert vocabulary.decode([BOS, *ids, EOS, *more, EOS, PAD, PAD]) == "ein Baum"
    assert vocabulary.decode([]) == vocabulary.decode([BOS, EOS, PAD]) == ""
    assert vocabulary.encode([""]) == [[]]


@pytest.mark.parametrize("unit", UNITS)
def test_what_was_never_seen_is_unknown_and_can_be_replaced(unit):
    vocabulary = trained(unit, ["der rote Ball", "der blaue Ball"] * 5)
    ids = vocabulary.encode(["der ☃ Ball"])[0]
    assert ids.count(UNK) == 1
    assert vocabulary.decode(ids) == "der <unk> Ball"
    assert vocabulary.decode(ids, unknown=["grüne"]) == "der grüne Ball"
    assert vocabulary.decode(ids + ids, unknown=["grüne"]).count("<unk>") == 1


@pytest.mark.parametrize("unit", UNITS)
def test_pieces_point_to_their_part_of_the_text(unit):
    texts = random_texts(100, seed=1)
    vocabulary = trained(unit, texts)
    for text in random_texts(100, seed=4, pieces=tuple(SYLLABLES + STRANGE + BLANKS + MARKS)):
        pieces = vocabulary.pieces(text)
        assert [index for index, _, _ in pieces] == vocabulary.encode([text])[0]
        assert all(vocabulary.tokens()[index] == display for index, display, _ in pieces)
        place = 0
        for _, _, surface in pieces:
            place = text.index(surface, place)
    assert (UNK, "<unk>", "☃") in vocabulary.pieces("Schnee: ☃ ")


@pytest.mark.parametrize("unit", UNITS)
def test_saved_equals_loaded(unit, tmp_path):
    texts = random_texts(200, seed=1)
    vocabulary = trained(unit, texts, lowercase=True)
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded.tokens() == vocabulary.tokens()
    assert len(loaded) == len(vocabulary) == len(loaded.tokens())
    assert loaded.unit == unit
    unseen = [*random_texts(200, seed=5), "<eos> <pad> ☃"]
    assert loaded.encode(unseen) == vocabulary.encode(unseen)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "vocabulary.json").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"vocabulary.json", "again.json"}


def test_loading_what_is_no_vocabulary(tmp_path):
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text('{"model": {')
    with pytest.raises(ValueError, match="is not a vocabulary"):
        Vocabulary.load(tmp_path / "broken.json")


@pytest.mark.parametrize("unit", UNITS)
def test_training_is_deterministic_even_where_counts_are_equal(unit, tmp_path):
    # Every one of a thousand characters occurs once, so that a limited alphabet is all ties.
    texts = [*random_texts(200, seed=6), "".join(map(chr, range(0x4E00, 0x51E8)))]
    for number in range(4):
        trained(unit, texts, size=600).save(tmp_path / f"{number}.json")
    assert len({(tmp_path / f"{number}.json").read_bytes() for number in range(4)}) == 1


@pytest.mark.parametrize("unit", UNITS)
def test_size_is_an_upper_bound_that_enough_text_reaches(unit):
    texts = random_texts(2000, seed=7)
    assert len(trained(unit, texts, size=40 if unit == "character" else 300)) == (40 if unit == "character" else 300)
    assert len(trained(unit, texts, size=20)) == 20
    assert len(trained(unit, ["ab"], size=300)) < 12


@pytest.mark.parametrize("unit", SUBWORDS)
def test_an_alphabet_larger_than_the_vocabulary_leaves_room_for_pieces(unit):
    common = random_texts(2000, seed=8)
    vocabulary = trained(unit, ["".join(map(chr, range(0x4E00, 0x5200))), *common], size=600)
    assert len(vocabulary) == 600
    assert 250 < sum(len(piece) == 1 for piece in vocabulary.tokens()) <= 301
    assert [vocabulary.decode(ids) for ids in vocabulary.encode(common)] == [normal(text) for text in common]


def test_the_most_frequent_words_are_kept():
    texts = ["eins zwei drei vier"] * 2 + ["eins zwei drei"] * 3 + ["zwei fünf"] * 4
    vocabulary = Vocabulary.train(iter(texts), unit="word", size=8)
    assert vocabulary.tokens()[4:] == ["▁zwei", "▁drei", "▁eins", "▁fünf"]


@pytest.mark.parametrize("unit", UNITS)
def test_rare_characters_or_words_are_unknown(unit):
    texts = ["der Ball"] * 5 + ["Ω"] * 4
    rare = trained(unit, texts, min_count=5)
    assert UNK in rare.encode(["Ω"])[0]
    assert "Ω" not in "".join(rare.tokens())
    assert UNK not in trained(unit, texts, min_count=4).encode(["Ω"])[0]


@pytest.mark.parametrize("unit", UNITS)
def test_lower_case(unit):
    vocabulary = trained(unit, ["STRASSE Straße ÉTÉ J\u030c"] * 3, lowercase=True)
    upper, lower = vocabulary.encode(["STRASSE ÉTÉ J\u030c", "strasse été ǰ"])
    assert upper == lower
    assert UNK not in upper
    assert vocabulary.decode(upper) == "strasse été ǰ"


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("texts", [[], [""], [" \t", "\n"]])
def test_no_text_is_an_error(unit, texts):
    with pytest.raises(ValueError, match="no text"):
        trained(unit, texts)


@pytest.mark.parametrize(("unit", "size"), [("bpe", 0), ("unigram", 0), ("bpe", 7), ("word", 4), ("syllable", 100)])
def test_impossible_units_and_sizes(unit, size):
    with pytest.raises(ValueError, match=unit):
        Vocabulary.train(iter(["ein Wort"]), unit=unit, size=size)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("between", [" ", ""], ids=["words", "one word"])
def test_the_time_for_a_long_line_grows_with_its_length_alone(unit, between):
    words = random_texts(1000, seed=9, pieces=tuple(SYLLABLES))
    vocabulary = trained(unit, words)
    short = between.join(random.Random(1).choices(words, k=300))

    def seconds(line):
        start = time.process_time()
        vocabulary.encode([line])
        return time.process_time() - start

    once, twentyfold = (min(seconds(line) for _ in range(3)) for line in (short, between.join([short] * 20)))
    assert twentyfold < 100 * max(once, 1e-3)  # 20 would be linear, 400 quadratic; machines are noisy


@pytest.mark.parametrize("unit", UNITS)
def test_training_reads_its_lines_once_and_keeps_none(unit):
    class Line(str):
        alive = 0

        def __init__(self, _):
            Line.alive += 1

        def __del__(self):
            Line.alive -= 1

    most = 0

    def lines():
        nonlocal most
        for number in range(20_000):
            most = max(most, Line.alive)
            yield Line(f"zeile {number % 7}")

    assert len(trained(unit, lines())) > 4
    assert most < 2_000
