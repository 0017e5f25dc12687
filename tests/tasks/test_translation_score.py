"""Scores: BLEU equals its definition, the tokenised one does not see what Moses levels, and blanks are no trouble."""

import math
import random
from collections import Counter

import pytest

from tasks.translation.config import DataConfig, TranslationConfig
from tasks.translation.score import score, tokenized_lowercased

WORDS = ["ein", "zwei", "Hund", "Katze", "Baum", "sieht", "grüne", "alte", "und", "mit"]


def scored(outputs, references, target="de"):
    predictions = [
        {"output": output, "target": reference, "target_log_prob": -2.0 * len(reference or ""), "target_tokens": 4}
        for output, reference in zip(outputs, references, strict=True)
    ]
    source = "en" if target != "en" else "de"
    return score(predictions, TranslationConfig(data=DataConfig(source=source, target=target)))


def sentences(count, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, 12))) for _ in range(count)]


def corpus_bleu(outputs, references):
    """BLEU of texts of words between blanks, as Papineni et al. (2002) define it, in per cent."""
    logs, output_length = [], sum(len(output.split()) for output in outputs)
    for order in range(1, 5):
        hits = total = 0
        for output, reference in zip(outputs, references, strict=True):
            grams = [
                Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))
                for words in (output.split(), reference.split())
            ]
            hits += (grams[0] & grams[1]).total()
            total += grams[0].total()
        logs.append(math.log(hits / total))
    reference_length = sum(len(reference.split()) for reference in references)
    return 100 * math.exp(sum(logs) / 4 + min(0.0, 1 - reference_length / output_length))


def test_bleu_is_its_definition():
    outputs = references = sentences(50, seed=1)
    outputs = [" ".join(words.split()[: -1 - number % 2]) for number, words in enumerate(outputs)]
    outputs = [line.replace("Hund", "Katze") for line in outputs]
    scores = scored(outputs, references)
    assert scores["bleu"] == pytest.approx(corpus_bleu(outputs, references), rel=1e-9)
    lowered = corpus_bleu([line.lower() for line in outputs], [line.lower() for line in references])
    assert scores["bleu_tok_lc"] == pytest.approx(lowered, rel=1e-9)
    assert 0 < scores["chrf"] < 100


def test_equal_texts_have_full_scores_and_strangers_none():
    references = sentences(10, seed=2)
    perfect = scored(references, references)
    assert all(perfect[name] == pytest.approx(100) for name in ("bleu", "chrf", "bleu_tok_lc", "exact_match"))
    strangers = scored(["xxx yyy zzz qqq"] * 10, references)
    assert strangers["bleu"] == strangers["exact_match"] == 0


def test_perplexity_is_per_token_of_all_references_together():
    # 2 nats for each of 2 + 4 letters, 4 tokens for each line.
    assert scored(["", ""], ["ab", "abcd"])["perplexity"] == pytest.approx(math.exp(12 / 8))


def test_signatures_say_how():
    scores = scored(["Ein Hund."], ["Ein Hund."])
    assert "case:mixed" in scores["bleu_signature"]
    assert "tok:13a" in scores["bleu_signature"]
    assert "nc:6|nw:0" in scores["chrf_signature"]
    assert "tok:zh" in scored(["一只狗"], ["一只狗"], target="zh")["bleu_signature"]
    assert scored(["一只狗在这里"], ["一只狗在那里"], target="zh")["bleu"] > 0


def test_the_tokenised_score_ignores_case_and_shapes_of_punctuation():
    references = ["„Der alte Hund“, sagt er, sieht den Baum – heute."] * 3
    outputs = ['"der alte Hund", sagt er, sieht den baum - heute.'] * 3
    scores = scored(outputs, references)
    assert scores["bleu_tok_lc"] == pytest.approx(100)
    assert scores["bleu"] < 90
    assert scores["exact_match"] == 0


@pytest.mark.parametrize(
    ("language", "line", "expected"),
    [
        ("de", "Ein T-Shirt für „Kids“, z.B. heute!", 'ein t-shirt für " kids " , z.b. heute !'),
        ("de", "Er sagt: „So.“", 'er sagt : " so " .'),
        ("en", 'A man\'s "red" hat.', 'a man \'s " red " hat .'),
        ("en", "Tom & Ann <3 [x|y]", "tom & ann < 3 [ x | y ]"),
        ("fr", "L'homme n'est pas là.", "l' homme n' est pas là ."),
        ("", "", ""),
        ("xx", "Eno owt.", "eno owt ."),
        ("de_AT", "Das ist z.B. Käse.", "das ist z.b. käse ."),
    ],
)
def test_moses_tokens(language, line, expected):
    assert tokenized_lowercased([line], language) == [expected]


def test_exact_matches_are_counted_up_to_blanks_and_composition():
    outputs = ["ein  Hund ", "Cafe\u0301", "ein hund", "", "Hund"]
    references = ["ein Hund", "Café", "ein Hund", "", "ein Hund"]
    assert scored(outputs, references)["exact_match"] == pytest.approx(60)


@pytest.mark.parametrize(("outputs", "references"), [([""], [""]), (["Hund"], [""]), ([""], ["Hund"])])
def test_empty_lines_do_not_crash(outputs, references):
    scores = scored(outputs, references)
    assert scores["bleu"] == scores["chrf"] == scores["bleu_tok_lc"] == 0
    assert scores["exact_match"] == (100 if outputs == references else 0)


def test_what_has_no_reference_is_left_out():
    references = sentences(4, seed=3)
    assert scored([*references, "mehr"], [*references, None])["bleu"] == pytest.approx(100)
    assert scored(["mehr"], [None]) == {}
    assert score([{"output": "mehr"}], TranslationConfig()) == {}
    assert score([], TranslationConfig()) == {}
