"""Scores: BLEU, ROUGE-L and CIDEr-D equal their definitions, and what is seen is counted where it can be known."""

import itertools
import json
import logging
import math
import random
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from shared.config import UserError
from shared.tiny_world import english, german, grammar, pictures
from tasks.captioning import score as scoring
from tasks.captioning.config import CaptioningConfig, DataConfig, DecodingConfig
from tasks.captioning.score import Cider, common_subsequence, meteor_and_spice, rouge_l, score, tokenized

WORDS = ["dog", "cat", "tree", "runs", "sits", "green", "old", "and", "with", "a"]


def prediction(output, captions, **others):
    counts = {"caption_log_prob": -2.0 * len(captions), "caption_tokens": 4 * len(captions)}
    return {"output": output, "captions": captions, "scene": "", "novel": True, **counts, **others}


def scored(outputs, references, **others):
    return score([prediction(o, r, **others) for o, r in zip(outputs, references, strict=True)], CaptioningConfig())


def drawn(seed, count=40):
    """One to four references of each picture, and outputs: the first reference with some of its words redrawn."""
    draw = random.Random(seed)
    references = [[draw.choices(WORDS, k=draw.randint(3, 9)) for _ in range(draw.randint(1, 4))] for _ in range(count)]
    outputs = [[draw.choice([word, word, *WORDS[:2]]) for word in captions[0]] for captions in references]
    return outputs, references


def written(words):
    return [" ".join(sentence) for sentence in words]


def grams(words, order):
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Two dogs , one black , are running .", "two dogs one black are running"),
        ("A man's T-shirt; the dogs' ball.", "a man 's t-shirt the dogs ball"),
        ("It's what they don't, can't and cannot do!", "it 's what they do n't ca n't and can not do"),
        ("He says “hello” or \"bye\" -- or 'hm'...", "he says hello or bye or hm"),
        ("A black-and-white cat (left) and/or a dog", "a black-and-white cat ( left ) and/or a dog"),
        ("Mr. Smith of the U.S. at 5 p.m. near Main St.", "mr. smith of the u.s. at 5 p.m. near main st."),
        ("10,000 people at 10:30, 3.5% of #8", "10,000 people at 10:30 3.5 % of # 8"),
        ("R&amp;B, red & blue; rock 'n' roll at two o'clock", "r&b red & blue rock 'n' roll at two o'clock"),
        ("He wins!! Does he?", "he wins !! does he"),
        ("Ein Mädchen läuft über die Straße.", "ein mädchen läuft über die straße"),
        ("...", ""),
        ("", ""),
    ],
)
def test_words_are_cut_as_the_penn_treebank_does_and_lose_their_punctuation(caption, words):
    assert tokenized(caption) == words.split()


def corpus_bleu(outputs, references, orders):
    """BLEU against the closest reference, of which the shorter of two, as Papineni et al. (2002) define it."""
    closest = [
        min((abs(len(reference) - len(output)), len(reference)) for reference in captions)[1]
        for output, captions in zip(outputs, references, strict=True)
    ]
    logs = []
    for order in range(1, orders + 1):
        hits = total = 0
        for output, captions in zip(outputs, references, strict=True):
            known = Counter()
            for caption in captions:
                known |= grams(caption, order)
            hits += (grams(output, order) & known).total()
            total += grams(output, order).total()
        logs.append(math.log(hits / total))
    return 100 * math.exp(sum(logs) / orders + min(0, 1 - sum(closest) / sum(map(len, outputs))))


@pytest.mark.parametrize("cut", [0, 2])
def test_bleu_is_its_definition(cut):
    outputs, references = drawn(seed=1, count=200)
    outputs = [words[: len(words) - cut] for words in outputs]
    scores = scored(written(outputs), list(map(written, references)))
    for orders in range(1, 5):
        assert scores[f"bleu{orders}"] == pytest.approx(corpus_bleu(outputs, references, orders), rel=1e-9)
    assert "nrefs:var" in scores["bleu_signature"]
    assert "tok:none|smooth:none" in scores["bleu_signature"]


def subsequences(words):
    return {part for length in range(len(words) + 1) for part in itertools.combinations(words, length)}


def test_the_longest_common_subsequence_is_the_longest_of_all():
    for one, other in zip(*(drawn(seed)[0] for seed in (2, 3)), strict=True):
        expected = max(map(len, subsequences(one) & subsequences(other)))
        assert common_subsequence(one, other) == common_subsequence(other, one) == expected


def test_rouge_takes_precision_and_recall_from_whichever_reference_gives_more():
    # 2 of 4 words are in the first, which is short: recall 1. All 4 are in the second, which is long: precision 1.
    assert rouge_l("abcd", ["bd", "axxbxcxd"]) == pytest.approx(1)
    # Precision 2 / 4, recall 2 / 5; F = (1 + 1.44) * 0.5 * 0.4 / (0.4 + 1.44 * 0.5).
    assert rouge_l("abcd", ["bxxxd", "y"]) == pytest.approx(0.488 / 1.12)
    assert rouge_l("", ["a", ""]) == rouge_l("a", ["b", ""]) == 0


def test_cider_of_two_pictures_by_hand():
    cider = Cider.fit([[["a", "b"], ["a", "c"]], [["d", "e"]]])
    # Cosine 1 for single words and for pairs, 0 for longer n-grams; all weigh log 2, as each is of one picture.
    assert cider.score(["d", "e"], [["d", "e"]]) == pytest.approx(10 * (1 + 1 + 0 + 0) / 4)
    # Single words: 2 a, clipped to 1, against a and b: 1 / (2 * sqrt(2)). No pair is shared.
    assert cider.score(["a", "a"], [["a", "b"]]) == pytest.approx(10 / (2 * math.sqrt(2)) / 4)
    # The mean over two references, of which the second shares nothing.
    assert cider.score(["d", "e"], [["d", "e"], ["a", "c"]]) == pytest.approx(2.5)
    # Three words too many: 1 / 2 for single words, 1 / sqrt(4) for pairs, the penalty exp(-9 / 72) for the length.
    found = cider.score(["d", "e", "f", "g", "h"], [["d", "e"]])
    assert found == pytest.approx(10 * (math.sqrt(2 / 5) + 1 / 2) / 4 * math.exp(-9 / 72))


def test_words_of_every_picture_weigh_nothing_and_unknown_ones_the_most():
    cider = Cider.fit([[["a", "b"]], [["a", "c"]], [["a", "c"]]])
    assert cider.score(["a"], [["a"]]) == 0
    assert cider.score(["b"], [["b"]]) == cider.score(["new"], [["new"]]) == 2.5
    towards_b, towards_c, towards_new = (cider.score(["b", "c", "new"], [[word]]) for word in ("b", "c", "new"))
    assert 0 < towards_c < towards_b == towards_new
    assert Cider.fit([[["a", "b"]]]).score(["a", "b"], [["a", "b"]]) == 0  # of one picture, no word is telling


def cider_d(outputs, references):
    """CIDEr-D as Vedantam et al. (2015), equations 2 to 4, define it, for each output."""
    found = []
    for output, captions in zip(outputs, references, strict=True):
        total = 0.0
        for order, caption in itertools.product(range(1, 5), captions):
            keys = sorted(grams(output, order) | grams(caption, order))
            held = [sum(any(grams(other, order)[key] for other in others) for others in references) for key in keys]
            idf = [math.log(len(references) / max(1, count)) for count in held]
            candidate, reference = (
                [grams(words, order)[key] * weight for key, weight in zip(keys, idf, strict=True)]
                for words in (output, caption)
            )
            product = sum(min(c, r) * r for c, r in zip(candidate, reference, strict=True))
            norms = math.hypot(*candidate) * math.hypot(*reference)
            penalty = math.exp(-((len(output) - len(caption)) ** 2) / (2 * 6**2))
            total += penalty * product / norms if norms else 0.0
        found.append(10 * total / 4 / len(captions))
    return found


def test_cider_is_its_definition():
    outputs, references = drawn(seed=4)
    expected = cider_d(outputs, references)
    cider = Cider.fit(references)
    assert list(map(cider.score, outputs, references)) == pytest.approx(expected, rel=1e-9)
    assert scored(written(outputs), list(map(written, references)))["cider"] == pytest.approx(
        100 * sum(expected) / len(expected)
    )


def test_cider_of_ids_is_cider_of_words():
    outputs, references = drawn(seed=5)
    ids = {word: number for number, word in enumerate(WORDS)}
    outputs_in_ids = [tuple(ids[word] for word in words) for words in outputs]
    references_in_ids = [[tuple(ids[word] for word in words) for words in captions] for captions in references]
    of_words, of_ids = Cider.fit(references), Cider.fit(references_in_ids)
    assert list(map(of_words.score, outputs, references)) == list(map(of_ids.score, outputs_in_ids, references_in_ids))


def test_the_order_of_references_and_pictures_changes_nothing():
    outputs, references = drawn(seed=6)
    outputs, references = written(outputs), list(map(written, references))
    backward = scored(outputs[::-1], [captions[::-1] for captions in references[::-1]])
    forward = scored(outputs, references)
    assert forward.pop("bleu_signature") == backward.pop("bleu_signature")
    assert forward == pytest.approx(backward, rel=1e-9)


def test_equal_captions_have_full_scores_and_strangers_none():
    captions = ["a dog runs on grass", "two cats sit in trees", "the old man reads papers"]
    references = [[f"{caption.capitalize()} ."] for caption in captions]
    perfect = scored(captions, references)
    assert [perfect[f"bleu{n}"] for n in range(1, 5)] == pytest.approx([100] * 4)
    assert (perfect["rouge_l"], perfect["cider"]) == pytest.approx((100, 1000))
    strangers = scored(["xxx yyy zzz qqq www"] * 3, references)
    assert all(strangers[name] == 0 for name in ("bleu1", "bleu4", "rouge_l", "cider"))


@pytest.mark.parametrize("output", ["", ".", "dog", "a dog"])
def test_captions_of_few_words_or_none_have_scores(output):
    scores = scored([output] * 2, [["a dog", "a dog runs"], ["cats", "..."]])
    assert all(math.isfinite(scores[name]) for name in ("bleu1", "rouge_l", "cider"))
    assert (scores["bleu1"] > 0) == (output not in ("", "."))
    assert scores["bleu4"] == 0


def test_different_new_and_expected_captions_are_counted():
    predictions = [
        prediction("a dog", ["a"], novel=False, caption_log_prob=-3.0, caption_tokens=2),
        prediction("a dog", ["b", "c"], novel=False, caption_log_prob=-9.0, caption_tokens=6),
        prediction("a cat", ["d"], novel=True, caption_log_prob=0.0, caption_tokens=2),
        prediction("dogs", ["e"], novel=False, caption_log_prob=0.0, caption_tokens=2),
    ]
    scores = score(predictions, CaptioningConfig())
    assert (scores["distinct_captions"], scores["novel_captions"]) == (75, 25)
    assert scores["perplexity"] == pytest.approx(math.exp(12 / 12))
    predictions[0]["caption_log_prob"] = -1e9
    assert score(predictions, CaptioningConfig())["perplexity"] == math.inf


def test_without_references_there_are_no_scores(caplog):
    with caplog.at_level(logging.WARNING):
        assert scored(["a dog"], [[]]) == {}
    assert len(caplog.messages) == 1


@pytest.fixture
def judged(monkeypatch):
    """Replaces the judge: a scene of tests is [true, sizes right, nouns]; returns the calls as they come in."""
    calls = []

    def judge(caption, language, scene):
        calls.append((caption, language, scene))
        return SimpleNamespace(true=scene[0], sizes=scene[1], nouns=scene[2])

    monkeypatch.setattr(scoring.pictures, "judge", judge)
    return calls


def looking(output, boxes, true=True, sizes=True, nouns=()):
    """A prediction each of whose words looked at one of the boxes, over a scene of `judged`."""
    regions = [[word, box, 0.5] for word, box in zip(output.split(), boxes, strict=True)]
    return prediction(output, ["a"], regions=regions, scene=json.dumps([true, sizes, nouns]))


def test_captions_are_judged_by_their_scene(judged):
    predictions = [
        looking("a circle", [[0, 0, 1, 1]] * 2),
        looking("a ring", [[0, 0, 1, 1]] * 2, sizes=False),
        looking("a star", [[0, 0, 1, 1]] * 2, true=False, sizes=False),
        prediction("a moon", ["a"]),
    ]
    scores = score(predictions, CaptioningConfig())
    assert scores["true_captions"] == pytest.approx(200 / 3)
    assert scores["true_sizes"] == pytest.approx(100 / 3)
    assert "attention_on_object" not in scores  # the judge found no noun
    assert judged[1] == ("a ring", english, [True, False, []])


@pytest.mark.parametrize("language", ["en", "de"])
def test_captions_of_tiny_world_are_true_of_their_own_picture_only(language):
    drawn = [pictures.draw("test", 1, position) for position in range(30)]
    told = [pictures.captions(scene, pictures.LANGUAGES[language])[0] for scene, *_ in drawn]
    scenes = [pictures.described(scene, boxes) for scene, boxes, _ in drawn]
    config = CaptioningConfig(data=DataConfig(language=language))

    def share(outputs, region):
        predictions = [
            prediction(
                output,
                ["a"],
                scene=json.dumps(scene),
                regions=[[word, region, 1.0] for word in grammar.words(output)],
            )
            for output, scene in zip(outputs, scenes, strict=True)
        ]
        scores = score(predictions, config)
        return scores["true_captions"], scores["true_sizes"], scores.get("attention_on_object")

    assert share(told, [0, 0, 1, 1]) == (100, 100, 100)
    assert share(told, [0, 0, 0.01, 0.01])[2] == 0
    assert share(told[1:] + told[:1], [0, 0, 1, 1])[:2] == (0, 0)


def test_the_scene_is_judged_in_its_language(judged):
    score([looking("ein Ring", [[0, 0, 1, 1]] * 2)], CaptioningConfig(data=DataConfig(language="de")))
    assert judged[0][1] is german


LEFT, RIGHT, CORNER = [0, 0, 0.5, 1], [0.5, 0, 1, 1], [0.9, 0.9, 1, 1]


@pytest.mark.parametrize(
    ("boxes", "nouns", "expected"),
    [
        ([LEFT, LEFT, LEFT], [[1, [LEFT]]], 100),
        ([LEFT, LEFT, LEFT], [[1, [RIGHT]]], 0),  # they share an edge only
        ([LEFT, RIGHT, LEFT], [[1, [CORNER, LEFT]]], 100),
        ([LEFT, RIGHT, LEFT], [[0, [CORNER]], [1, [CORNER]]], 50),
        ([LEFT, RIGHT, LEFT], [[1, [CORNER]], [2, []]], 100),  # no such object is there to look at
        ([LEFT, RIGHT, LEFT], [[2, []]], None),
    ],
)
def test_a_noun_looks_at_its_object_where_region_and_box_overlap(judged, boxes, nouns, expected):
    scores = score([looking("a red circle", boxes, nouns=nouns)], CaptioningConfig())
    assert scores.get("attention_on_object") == expected


def test_nouns_of_all_captions_count_alike(judged):
    predictions = [looking("a ring", [LEFT] * 2, nouns=[[1, [LEFT]]])]
    predictions += [looking("a star , stars", [LEFT] * 4, nouns=[[1, [CORNER]], [3, [CORNER]]])]
    assert score(predictions, CaptioningConfig())["attention_on_object"] == pytest.approx(100 / 3)


def test_without_regions_of_words_nobody_knows_where_they_look(judged):
    blind = looking("a ring", [LEFT] * 2, nouns=[[1, [LEFT]]])
    pieces = looking("a r ing", [LEFT] * 3, nouns=[[1, [LEFT]]]) | {"output": "a ring"}
    del blind["regions"]
    scores = score([blind, pieces], CaptioningConfig())
    assert scores["true_captions"] == 100
    assert "attention_on_object" not in scores


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A package pycocoevalcap whose METEOR is the share of outputs that are a reference, and whose SPICE fails."""
    for name, body in (("meteor", "sum(a[i][0] in b[i] for i in a) / len(a), []"), ("spice", "float('not a number')")):
        folder = tmp_path / "pycocoevalcap" / name
        folder.mkdir(parents=True)
        source = f"class {name.title()}:\n    def compute_score(self, b, a):\n        return {body}\n"
        (folder / f"{name}.py").write_text(source)
    (tmp_path / "java").write_text("#!/bin/sh\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "pycocoevalcap"]:
        del sys.modules[name]  # or it would be found by tests of what happens without it


def test_meteor_is_what_the_package_says_and_spice_is_named_where_it_fails(programs, caplog):
    words = [["a", "dog"], ["cats"]], [[["dogs"], ["a", "dog"]], [["cat"]]]
    assert meteor_and_spice(*words) == {"meteor": 50}
    assert "lacks its models" in caplog.messages[-1]
    (programs / "pycocoevalcap/spice/lib").mkdir()
    (programs / "pycocoevalcap/spice/lib/stanford-corenlp-3.6.0.jar").touch()
    assert meteor_and_spice(*words) == {"meteor": 50}
    assert caplog.messages[-1] == "no SPICE, as its program failed: could not convert string to float: 'not a number'"
    assert len(caplog.messages) == 2


def test_meteor_is_computed_on_demand(programs):
    predictions = [prediction("A dog.", ["a dog"])]
    assert "meteor" not in score(predictions, CaptioningConfig())
    assert score(predictions, CaptioningConfig(decoding=DecodingConfig(meteor=True)))["meteor"] == 100


def test_meteor_needs_java(programs):
    DecodingConfig(meteor=True).check()
    (programs / "java").unlink()
    DecodingConfig().check()
    with pytest.raises(UserError, match=r"decoding\.meteor: true needs Java; "):
        DecodingConfig(meteor=True).check()
