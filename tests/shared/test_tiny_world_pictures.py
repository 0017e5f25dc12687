"""The tiny world's pictures as a corpus: what is drawn is what is told, and nothing else is judged true."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from shared.tiny_world import english, german, picture_corpus
from shared.tiny_world.grammar import COLOURS, NUMBERS, RELATIONS, SHAPES, SIZES, Scene, can_tell, split_of, words
from shared.tiny_world.layout import SIZE
from shared.tiny_world.picture_corpus import PicturesConfig, TinyWorldPictures, prepare_pictures
from shared.tiny_world.pictures import captions, described, draw, judge, places, same_scenes

LANGUAGES = pytest.mark.parametrize("language", [english, german], ids=["english", "german"])


@pytest.fixture(scope="module")
def drawn():
    """(scene, boxes of each group, picture) of the training split."""
    return [draw("train", 1, position) for position in range(250)]


def test_training_shows_most_of_what_is_hard(drawn):
    """And scenes of all kinds."""
    held_out = [draw("valid", 1, position) for position in range(250)]
    groups, hidden = (
        [np.mean([is_so(scene) for scene, _, _ in some]) for some in (drawn, held_out)]
        for is_so in (lambda scene: len(scene.groups) == 1, lambda scene: "covers" in scene.relations)
    )
    assert 0.15 < groups[0] < groups[1] - 0.1 and hidden[1] + 0.1 < hidden[0] < 0.4


def one(number, size, colour, shape, boxes):
    return {"number": number, "size": size, "colour": colour, "shape": shape, "boxes": boxes}


# --------------------------------------------------------------------------------------------------------------- truth


@LANGUAGES
def test_every_caption_is_true_of_its_picture(drawn, language):
    for scene, boxes, _ in drawn:
        told = captions(scene, language)
        converses = len(scene.relations) - scene.relations.count("covers")
        assert len(set(told)) == len(told) == (1, 1, 4)[len(scene.relations)] + converses
        for caption in told:
            assert judge(caption, language, described(scene, boxes))[:2] == (True, True)


@LANGUAGES
def test_a_caption_with_one_thing_changed_is_false(drawn, language):
    for scene, boxes, _ in drawn[:100]:
        seen = described(scene, boxes)
        for caption in captions(scene, language):
            for changed in changes(language.parse(caption)):
                assert not judge(language.tell(changed), language, seen).true, (caption, language.tell(changed))


def changes(scene):
    """Scenes with another number, colour or shape of one group, or with another relation."""
    for i, group in enumerate(scene.groups):
        for key, choices in {"number": NUMBERS, "colour": COLOURS, "shape": SHAPES}.items():
            for other in choices:
                if other != getattr(group, key):
                    groups = list(scene.groups)
                    groups[i] = replace(group, **{key: other})
                    yield replace(scene, groups=tuple(groups))
    for i, relation in enumerate(scene.relations):
        for other in set(RELATIONS) - {relation}:
            relations = list(scene.relations)
            relations[i] = other
            if can_tell(scene.telling, tuple(relations)):
                yield replace(scene, relations=tuple(relations))


@LANGUAGES
def test_a_wrong_size_is_no_wrong_caption(drawn, language):
    for scene, boxes, _ in drawn[:50]:
        other = SIZES[SIZES.index(scene.groups[0].size) - 1]
        changed = replace(scene, groups=(replace(scene.groups[0], size=other), *scene.groups[1:]))
        assert judge(language.tell(changed), language, described(scene, boxes))[:2] == (True, False)


def test_who_covers_whom_matters(drawn):
    found = [(scene, boxes) for scene, boxes, _ in drawn if scene.relations == ("covers",)]
    assert len(found) >= 5
    for scene, boxes in found:
        turned = replace(scene, groups=scene.groups[::-1])
        assert not judge(english.tell(turned), english, described(scene, boxes)).true


@LANGUAGES
def test_leaving_out_a_group_is_false(drawn, language):
    for scene, boxes, _ in drawn:
        if len(scene.groups) > 1:
            part = Scene(scene.groups[:1], (), "existence")
            assert not judge(language.tell(part), language, described(scene, boxes)).true


@LANGUAGES
def test_what_states_nothing_is_false(drawn, language):
    scene, boxes, _ = next(each for each in drawn if len(each[0].groups) == 2)
    seen = described(scene, boxes)
    for telling, true in (("statement", True), ("reported", True), ("question", False)):
        assert judge(language.tell(replace(scene, telling=telling)), language, seen).true == true
    for text in ("", "a red ring", f"{language.tell(scene)} and", language.tell(scene).upper()):
        assert judge(text, language, seen) == (False, False, [])


def test_equal_groups_are_matched_in_whichever_way_is_true():
    low, high, right = [0.1, 0.6, 0.2, 0.7], [0.1, 0.1, 0.2, 0.2], [0.7, 0.6, 0.8, 0.7]
    rings = [one(1, "tiny", "red", "ring", [right]), one(1, "tiny", "red", "ring", [high])]
    scene = [*rings, one(1, "big", "blue", "star", [low])]
    verdict = judge("a big blue star is below a tiny red ring and left of a tiny red ring", english, scene)
    assert verdict == (True, True, [(3, [low]), (9, [right, high]), (16, [right, high])])
    assert not judge("a big blue star is below a tiny red ring and above a tiny red ring", english, scene).true


@LANGUAGES
def test_nouns_are_where_their_objects_are(drawn, language):
    forms = {form: shape for shape, nouns in language.NOUNS.items() for form in nouns}
    for scene, boxes, _ in drawn:
        seen = described(scene, boxes)
        for caption in captions(scene, language):
            found = judge(caption, language, seen).nouns
            assert len(found) == len(scene.groups)
            for position, group in found:
                shape = forms[words(caption)[position]]
                assert group in [each["boxes"] for each in seen if each["shape"] == shape]


@LANGUAGES
def test_words_are_to_be_seen_where_the_next_noun_is(drawn, language):
    for scene, boxes, _ in drawn:
        seen = described(scene, boxes)
        for caption in captions(scene, language):
            found = places(caption, language, seen)
            assert len(found) == len(words(caption))
            before = 0
            for position, group in judge(caption, language, seen).nouns:
                assert all(each == group for each in found[before : position + 1])
                before = position + 1
            assert not any(found[before:])


def test_a_noun_of_a_false_caption_has_the_boxes_of_its_colour_and_shape():
    box = [0.1, 0.1, 0.2, 0.2]
    scene = [one(1, "tiny", "red", "ring", [box])]
    caption = "above two big red rings is a tiny blue ring"  # told from behind
    assert judge(caption, english, scene) == (False, False, [(4, [box]), (9, [])])


# --------------------------------------------------------------------------------------------------------------- corpus


def built(cache_dir, **sizes):
    builder = TinyWorldPictures(data_dir=cache_dir, config=PicturesConfig(**sizes))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder


def read(builder, split):
    return list(tfds.as_numpy(builder.as_dataset(split=split)))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def splits(cache_dir):
    builder = built(cache_dir, train=12, valid=5, test=5, seed=3)
    return {split: read(builder, split) for split in ("train", "valid", "test")}


def equal(one, two):
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a) for a, b in zip(one, two, strict=True)
    )


def test_examples_are_pictures_with_captions_and_what_is_seen(splits):
    for split, examples in splits.items():
        assert len(examples) == {"train": 12, "valid": 5, "test": 5}[split]
        for position, example in enumerate(examples):
            assert set(example) == {"id", "name", "picture", "english", "german", "scene"}
            assert example["id"] == position and example["id"].dtype == np.int64
            assert example["name"].decode() == f"picture-{position:05d}.png"
            picture = Image.open(io.BytesIO(example["picture"]))
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (SIZE, SIZE))
            scene = json.loads(example["scene"])
            for key, language in (("english", english), ("german", german)):
                assert len(example[key]) >= 1
                assert all(judge(caption.decode(), language, scene).sizes for caption in example[key])


def test_no_two_splits_have_a_scene_in_common_told_from_wherever(splits):
    for split, examples in splits.items():
        for example in examples:
            told = english.parse(example["english"][0].decode())
            assert split_of(min(same_scenes(told), key=repr)) == split
    told = {split: {text for example in examples for text in example["german"]} for split, examples in splits.items()}
    assert not (told["train"] & told["valid"] or told["train"] & told["test"] or told["valid"] & told["test"])


def test_the_split_is_that_of_every_way_to_tell_a_scene(drawn):
    for scene, *_ in drawn:
        (split,) = {split_of(min(same_scenes(same), key=repr)) for same in same_scenes(scene)}
        assert split == "train"


def test_a_larger_corpus_begins_with_the_smaller_and_another_seed_does_not(splits, cache_dir):
    larger = built(cache_dir, train=14, valid=5, test=5, seed=3)
    other = built(cache_dir, train=2, valid=1, test=1, seed=4)
    assert equal(read(larger, "train")[:12], splits["train"]) and equal(read(larger, "test"), splits["test"])
    assert not equal(read(other, "train"), splits["train"][:2])


def test_the_same_seed_draws_the_same_bytes(drawn):
    again = [draw("train", 1, position) for position in range(20)]
    for (scene, boxes, picture), (other, other_boxes, other_picture) in zip(drawn, again, strict=False):
        assert scene == other and boxes == other_boxes and picture.tobytes() == other_picture.tobytes()


def test_processes_draw_what_one_would(monkeypatch, splits, tmp_path):
    monkeypatch.setattr(picture_corpus, "MANY", 4)
    builder = built(tmp_path, train=12, valid=5, test=5, seed=3)
    assert all(equal(read(builder, split), splits[split]) for split in splits)


def test_preparing_again_leaves_the_files_alone(tmp_path):
    def files():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    small = prepare_pictures(tmp_path, size=2, seed=1)
    before = files()
    assert [small.info.splits[split].num_examples for split in ("train", "valid", "test")] == [2, 2, 2]
    prepare_pictures(tmp_path, size=2, seed=1)
    assert files() == before != {}
