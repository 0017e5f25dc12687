"""Corpora of captioning: pictures come back in order with all their captions; what does not fit is one line."""

import csv
import gzip
import io
import json
import logging
import re
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from shared.pictures import decode_picture
from shared.tiny_world import english, german, pictures
from tasks.captioning.config import CaptioningConfig, DataConfig
from tasks.captioning.corpus import CaptionedPictures, prepare
from tests.errors import one_line_error

CAPTIONS = {
    "train": {"a.jpg": ["a dog", "a dog runs"], "b.jpg": ['Zwei Hühner , "drei" Hähne .'], "sub/c.png": ["one cat"]},
    "valid": {"d.jpg": ["a bird", "some bird"]},
    "test": {"e.jpg": ["a fish"]},
}


def picture(path, level=100, size=(24, 20), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 50, 200)).save(path, **options)
    return path


@pytest.fixture
def own(tmp_path):
    """A folder with the pictures of `CAPTIONS`; each looks different."""
    names = [name for split in CAPTIONS.values() for name in split]
    for number, name in enumerate(names):
        picture(tmp_path / "own/images" / name, 40 * number)
    return tmp_path / "own"


def rows_of(told):
    return [(name, caption) for name, captions in told.items() for caption in captions]


def write_tsv(path, told):
    path.write_text("".join(f"{name}\t{caption}\n" for name, caption in rows_of(told)), encoding="utf-8")


def write_csv(path, told, columns=("image", "caption")):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows_of(told)])


def write_json(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_jsonl(path, told):
    entries = [{"image": name, "captions": captions} for name, captions in told.items()]
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries), encoding="utf-8")


def write_coco(path, told):
    ids = {name: 100 + number for number, name in enumerate(told)}
    pairs = rows_of(told)
    write_json(
        path,
        {
            "images": [{"id": number, "file_name": name} for name, number in ids.items()],
            "annotations": [{"id": i, "image_id": ids[name], "caption": told} for i, (name, told) in enumerate(pairs)],
        },
    )


def tables(folder, write=write_tsv, ending="tsv", told=CAPTIONS):
    for split, captions in told.items():
        write(folder / f"{split}.{ending}", captions)


def flickr8k(folder, told=CAPTIONS):
    lines = [f"{name}#{i}\t{told}\n" for split in told.values() for name in split for i, told in enumerate(split[name])]
    (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")
    for split, captions in told.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in captions))
    return {"captions": "tokens.txt", "train": "train.txt", "valid": "valid.txt", "test": "test.txt"}


def configured(folder, corpus="captions", **data):
    options = {"corpus": corpus, "dir": str(folder), "images": "images", "cache": str(folder.parent / "cache")} | data
    return CaptioningConfig(data=DataConfig(**options))


def read(corpus, split):
    """Examples of a split with text for strings; the ids count them, and no name comes twice."""
    found = []
    for example in corpus.splits[split]().as_numpy_iterator():
        assert set(example) == {"id", "name", "picture", "captions", "scene"}
        captions = [caption.decode("utf-8") for caption in example["captions"]]
        found.append({**example, "name": example["name"].decode("utf-8"), "captions": captions})
    assert [example["id"] for example in found] == list(range(corpus.sizes[split]))
    assert len({example["name"] for example in found}) == len(found)
    return found


def told_in(corpus):
    return {split: {each["name"]: each["captions"] for each in read(corpus, split)} for split in corpus.splits}


def refused(config, *parts):
    return one_line_error(lambda: prepare(config), *parts)


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("ending", "write"),
    [
        ("tsv", write_tsv),
        ("csv", write_csv),
        ("csv", lambda path, told: write_csv(path, told, ("File_Name", " Caption"))),
        ("json", write_json),
        ("json", lambda path, told: write_json(path, [{"image": name, "captions": told[name]} for name in told])),
        (
            "json",
            lambda path, told: write_json(path, [{"file": name, "caption": each} for name, each in rows_of(told)]),
        ),
        ("jsonl", write_jsonl),
    ],
)
def test_tables_of_every_kind(own, ending, write, capsys):
    tables(own, write, ending)
    corpus = prepare(configured(own))
    assert told_in(corpus) == CAPTIONS and list(told_in(corpus)["train"]) == list(CAPTIONS["train"])
    assert corpus.sizes == {"train": 3, "valid": 1, "test": 1} and corpus.name == "own" and not corpus.optimum
    for example in read(corpus, "train"):
        assert example["picture"] == (own / "images" / example["name"]).read_bytes() and example["scene"] == b""
        assert example["id"].dtype == np.int64
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("ending", ["tsv", "json"])
def test_compressed_tables_and_tables_named_in_full(own, ending):
    tables(own, {"tsv": write_tsv, "json": write_json}[ending], ending)
    for split in CAPTIONS:
        path = own / f"{split}.{ending}"
        (own / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert told_in(prepare(configured(own))) == CAPTIONS
    names = {split: f"{split}.{ending}" for split in CAPTIONS}
    assert told_in(prepare(configured(own, **names))) == CAPTIONS
    assert told_in(prepare(configured(own, **{split: f"{name}.gz" for split, name in names.items()}))) == CAPTIONS


def test_a_picture_that_is_named_again_is_one_example_with_all_captions(own, caplog):
    tables(own)
    (own / "train.tsv").write_text(
        "a.jpg\ta  dog\r\n\nb.jpg\ta hen\n./a.jpg\t a dog\truns \nsub/c.png\tone cat\nb.jpg\t \n", encoding="utf-8"
    )
    with caplog.at_level(logging.WARNING):
        found = told_in(prepare(configured(own)))["train"]
    assert found == {"a.jpg": ["a dog", "a dog runs"], "b.jpg": ["a hen"], "sub/c.png": ["one cat"]}
    assert f"{own / 'train.tsv'}: 1 empty captions left out" in caplog.text


def test_pictures_may_lie_beside_the_captions(own):
    tables(own, told={split: {f"images/{name}": each for name, each in CAPTIONS[split].items()} for split in CAPTIONS})
    assert list(told_in(prepare(configured(own, images="")))["valid"]) == ["images/d.jpg"]


def test_without_a_test_split(own, caplog):
    tables(own)
    (own / "test.tsv").unlink()
    (own / "images/e.jpg").unlink()
    with caplog.at_level(logging.INFO):
        assert set(prepare(configured(own)).splits) == {"train", "valid"}
    assert "nothing to test on" in caplog.text
    assert set(prepare(configured(own, test="")).splits) == {"train", "valid"}


@pytest.mark.parametrize(
    ("ending", "content", "parts"),
    [
        ("tsv", "", ["no caption"]),
        ("tsv", "a.jpg a dog\nb.jpg\ta hen\n", ["without a picture's name or without text: 1 (train.tsv line 1)"]),
        ("tsv", "a.jpg\ta dog\n\ta hen\n", ["without a picture's name or without text: 1 (train.tsv line 2)"]),
        ("tsv", b"a.jpg\ta dog\nb.jpg\ta \xe9\n", ["not valid UTF-8: 1 (train.tsv line 2)"]),
        ("csv", "", ["no column image or picture", "it has none"]),
        ("csv", "image;caption\na.jpg;a dog\n", ["no column image or picture", "it has image;caption"]),
        ("csv", "image,note\na.jpg,a dog\n", ["no column caption", "it has image, note"]),
        ("csv", "image,caption\na.jpg,a dog, a hen\n", ["more cells", "quotation marks", "1 (train.csv line 2)"]),
        ("csv", "image,caption\nb.jpg,a hen\na.jpg\n", ["without text: 1 (train.csv line 3)"]),
        ("csv", 'image,caption\na.jpg,"a dog\n', ["cannot be read behind line 1"]),
        ("csv", b'image,caption\na.jpg,"a\ndog"\nb.jpg,\xe9\n', ["not valid UTF-8: 1 (train.csv line 4)"]),
        ("json", "{", ["cannot be read as JSON"]),
        ("json", b'{"a.jpg": "\xe9"}', ["cannot be read as JSON"]),
        ("json", "[" * 100_000, ["cannot be read as JSON"]),
        ("json", "3", ["neither", '"caption"']),
        ("json", "{}", ["no caption"]),
        ("json", '{"a.jpg": 3, "b.jpg": ["b"]}', ["without text: 1 (train.json: a.jpg)"]),
        (
            "json",
            '[{"image": "a.jpg"}, {"caption": "b"}, 4, "five", {"image": 1, "caption": ""}]',
            ["5 (", "entry 1", ", ..."],
        ),
        ("jsonl", '{"image": "a.jpg", "caption": "a"}\n{"image"\n', ["not JSON: 1 (train.jsonl line 2)"]),
        ("jsonl", '{"image": "a.jpg", "caption": ["a", 2]}\n', ["without text: 1 (train.jsonl line 1)"]),
    ],
)
def test_tables_that_cannot_be_used(own, ending, content, parts):
    tables(own)
    (own / "train.tsv").unlink()
    (own / f"train.{ending}").write_bytes(content.encode() if isinstance(content, str) else content)
    refused(configured(own), own, *parts)


def test_lines_that_cannot_be_used_are_left_out(own, caplog):
    tables(own)
    with open(own / "train.tsv", "ab") as file:
        file.write(b"a.jpg\ta \xe9\nno tab\n")
    with caplog.at_level(logging.WARNING):
        assert told_in(prepare(configured(own, on_error="skip"))) == CAPTIONS
    for part in ("not valid UTF-8: 1 (train.tsv line 5)", "without text: 1 (train.tsv line 6)"):
        assert part in caplog.text


def test_files_that_are_missing(own, tmp_path):
    tables(own)
    refused(configured(own, train="trian"), own / "trian", "no such file for data.train", ".tsv, .csv, .json, .jsonl")
    refused(configured(own, valid="train.tsf"), "data.valid", "did you mean", "train.tsv")
    refused(configured(own, images="image"), own / "image", "data.images", "did you mean", "images")
    refused(configured(tmp_path / "owm"), tmp_path / "owm", "data.dir", "did you mean", "own")


# --------------------------------------------------------------------------------------- what does not fit together


def test_captions_without_picture_and_pictures_without_caption(own, caplog):
    tables(own)
    (own / "images/a.jpg").unlink()
    for name in ("v.jpg", "w.jpg", "x.jpg", "sub/y.PNG"):
        picture(own / "images" / name, format="PNG")
    with open(own / "valid.tsv", "a") as file:
        file.write("z.jpg\tnothing\nd.jpg\t\n")
    parts = [
        f"{own}: captions without a picture in {own / 'images'}: 2 (a.jpg, z.jpg)",
        "pictures without a caption: 4 (sub/y.PNG, v.jpg, w.jpg, ...)",
    ]
    refused(configured(own), *parts, "data.on_error=skip")
    with caplog.at_level(logging.WARNING):
        corpus = prepare(configured(own, on_error="skip"))
    assert all(part in caplog.text for part in parts)
    assert {split: list(told) for split, told in told_in(corpus).items()} == {
        "train": ["b.jpg", "sub/c.png"],
        "valid": ["d.jpg"],
        "test": ["e.jpg"],
    }


def test_a_split_of_which_nothing_is_left(own):
    tables(own)
    (own / "images/d.jpg").unlink()
    refused(configured(own, on_error="skip"), own, "valid split")
    (own / "images/e.jpg").unlink()
    (own / "valid.tsv").write_text("a.jpg\ta dog\n")
    refused(configured(own, on_error="skip"), own, "test split")


def test_pictures_of_two_splits_are_told(own, caplog):
    tables(own)
    write_tsv(own / "valid.tsv", CAPTIONS["valid"] | {"a.jpg": ["a dog"]})
    with caplog.at_level(logging.WARNING):
        prepare(configured(own))
    assert "1 of 2 pictures of the valid split are in the training split, too, such as a.jpg" in caplog.text


BROKEN = {
    "junk.jpg": "not a picture",
    "cut.jpg": "cut off",
    "empty.png": "0 bytes",
    "small.png": "1x1 pixels",
    "large.png": "data.max_pixels=200000",
}


@pytest.fixture
def broken(own):
    tables(own)
    for name in BROKEN:
        picture(own / "images" / name)
    (own / "images/junk.jpg").write_text("words")
    content = picture(own / "images/cut.jpg", size=(400, 400)).read_bytes()
    (own / "images/cut.jpg").write_bytes(content[:-400])
    (own / "images/empty.png").write_bytes(b"")
    picture(own / "images/small.png", size=(1, 1))
    picture(own / "images/large.png", size=(1000, 201))
    return own


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_stops_with_its_file(broken, name):
    for other in BROKEN.keys() - {name}:
        (broken / "images" / other).unlink()
    write_tsv(broken / "train.tsv", CAPTIONS["train"] | {name: ["something"]})
    refused(configured(broken, max_pixels=200_000), broken / "images" / name, BROKEN[name], "data.on_error=skip")


def test_broken_pictures_are_left_out_and_counted(broken, caplog):
    write_tsv(broken / "train.tsv", {name: ["something"] for name in BROKEN} | CAPTIONS["train"])
    with caplog.at_level(logging.WARNING):
        corpus = prepare(configured(broken, max_pixels=200_000, on_error="skip"))
    assert told_in(corpus) == CAPTIONS
    for name, fault in BROKEN.items():
        assert re.search(rf"left out: .*{re.escape(name)}: .*{re.escape(fault)}", caplog.text)
    assert "train split: 5 of 8 pictures left out" in caplog.text
    write_tsv(broken / "train.tsv", {name: ["something"] for name in BROKEN})
    for name in CAPTIONS["train"]:
        (broken / "images" / name).unlink()
    refused(configured(broken, max_pixels=200_000, on_error="skip"), "data.train", "none of its 5 pictures")


# ------------------------------------------------------------------------------------------------------ public layouts


def test_coco(own):
    for split, year in {"train": "train2017", "valid": "val2017"}.items():
        write_coco(own / f"annotations/captions_{year}.json", CAPTIONS[split])
    names = {"train": "annotations/captions_train2017.json", "valid": "annotations/captions_val2017.json"}
    expected = {split: CAPTIONS[split] for split in names}
    picture(own / "images/unknown.jpg")
    assert told_in(prepare(configured(own, "coco", **names))) == expected
    for split, year in {"train": "train2017", "valid": "val2017"}.items():
        for name in CAPTIONS[split]:
            (own / year / name).parent.mkdir(parents=True, exist_ok=True)
            (own / "images" / name).rename(own / year / name)
    assert told_in(prepare(configured(own, "coco", images="", **names))) == expected


def test_what_cocos_files_lack(own):
    write_coco(own / "train.json", CAPTIONS["train"] | {"d.jpg": []})
    write_coco(own / "valid.json", CAPTIONS["valid"])
    names = {"train": "train.json", "valid": "valid.json"}
    refused(configured(own, "coco", **names), "pictures without a caption: 1 (d.jpg)")
    content = json.loads((own / "train.json").read_text())
    content["annotations"].append({"image_id": 7, "caption": "a ghost"})
    content["images"].append({"id": 5, "file_name": "lost.jpg"})
    write_json(own / "train.json", content)
    config = configured(own, "coco", **names)
    refused(config, "without a picture's name or without text: 1 (train.json image_id 7)", "lost.jpg")
    skipped = prepare(configured(own, "coco", on_error="skip", **names))
    assert told_in(skipped) == {split: CAPTIONS[split] for split in names}
    for broken in ({"images": []}, [], {"images": [{"id": 1}], "annotations": []}, {"images": 3, "annotations": 3}):
        write_json(own / "train.json", broken)
        refused(config, own / "train.json", "COCO", '"image_id"')
    write_json(own / "train.json", {"images": [], "annotations": []})
    refused(config, own / "train.json", "no caption")


def test_karpathys_splits(own):
    images = [
        {"filename": name, "split": {"valid": "val"}.get(split, split), "sentences": [{"raw": each} for each in told]}
        for split, captions in CAPTIONS.items()
        for name, told in captions.items()
    ]
    images[1]["split"] = "restval"
    images[2] |= {"filepath": "sub", "filename": "c.png"}
    images.append({"filename": "unused.jpg", "split": "extra", "sentences": []})
    write_json(own / "dataset.json", {"images": images, "dataset": "own"})
    picture(own / "images/unknown.jpg")
    config = configured(own, "karpathy", captions="dataset.json")
    assert told_in(prepare(config)) == CAPTIONS
    write_json(own / "dataset.json", {"images": images[:4]})
    assert told_in(prepare(config)) == {split: CAPTIONS[split] for split in ("train", "valid")}
    write_json(own / "dataset.json", {"images": images[:3]})
    refused(config, own, "valid split")
    for broken in ({}, {"images": [3]}, {"images": [{"filename": "a", "split": [], "sentences": []}]}):
        write_json(own / "dataset.json", broken)
        refused(config, own / "dataset.json", "Karpathy", '"sentences"')
    refused(configured(own, "karpathy", captions="data.json"), "data.captions", "did you mean", "dataset.json")


def test_flickr8k(own):
    names = flickr8k(own)
    with open(own / "tokens.txt", "a") as file:
        file.write("lost.jpg.1#0\tnobody listed it\n")
    picture(own / "images/unlisted.jpg")
    assert told_in(prepare(configured(own, "flickr8k", **names))) == CAPTIONS
    with open(own / "train.txt", "a") as file:
        file.write("unlisted.jpg\n\nlost.jpg.1\nnowhere.jpg\na.jpg\n")
    config = configured(own, "flickr8k", **names)
    for part in ("captions without a picture in", "1 (lost.jpg.1)", "1 (nowhere.jpg)", "1 (unlisted.jpg)"):
        refused(config, part)
    assert told_in(prepare(configured(own, "flickr8k", on_error="skip", **names))) == CAPTIONS
    refused(configured(own, "flickr8k", **names | {"train": "trian.txt"}), "data.train", "train.txt")
    refused(configured(own, "flickr8k", **names | {"captions": "token.txt"}), "data.captions", "tokens.txt")


# ---------------------------------------------------------------------------------------------------------- conversion


def test_conversion_happens_once_wherever_the_pictures_are(own, tmp_path):
    tables(own)
    first = prepare(configured(own))
    (tmp_path / "elsewhere").mkdir()
    moved = own.rename(tmp_path / "elsewhere/own")
    with mock.patch.object(CaptionedPictures, "_generate_examples", side_effect=AssertionError("converted again")):
        second = prepare(configured(moved, cache=str(tmp_path / "cache")))
    assert first.identity == second.identity and re.fullmatch(r"[\w.-]+", first.identity)
    assert told_in(first) == told_in(second)


def test_every_other_content_has_another_identity(own):
    tables(own)
    found = [prepare(configured(own)).identity, prepare(configured(own, on_error="skip")).identity]
    write_tsv(own / "train.tsv", CAPTIONS["train"] | {"a.jpg": ["a dog", "a dog walks"]})
    found.append(prepare(configured(own)).identity)
    picture(own / "images/a.jpg", size=(90, 40))
    found.append(prepare(configured(own)).identity)
    (own / "images/a.jpg").rename(own / "images/aa.jpg")
    write_tsv(own / "train.tsv", {"aa.jpg": ["a dog", "a dog walks"], **CAPTIONS["train"]} | {"a.jpg": []})
    found.append(prepare(configured(own)).identity)
    assert len(set(found)) == len(found)


def test_pictures_are_read_one_by_one(own):
    # The generator must hand out examples before it has read all: the last picture is broken, the first two are not.
    tables(own)
    (own / "images/sub/c.png").write_text("words")
    seen = []
    original = CaptionedPictures._generate_examples

    def counted(self, split):
        for key, example in original(self, split):
            seen.append(example["name"])
            yield key, example

    with mock.patch.object(CaptionedPictures, "_generate_examples", counted):
        refused(configured(own), "sub/c.png")
    assert seen == ["a.jpg", "b.jpg"]


def test_the_order_survives_sorting_on_disk(own):
    told = {f"{number}.png": [str(number)] for number in range(40)}
    for name in told:
        picture(own / "images" / name)
    tables(own, told=CAPTIONS | {"train": told | CAPTIONS["train"]})
    with mock.patch("shared.corpora.SHUFFLE_MEMORY", 1000):
        corpus = prepare(configured(own))
    assert [each["name"] for each in read(corpus, "train")][:40] == list(told)


# ---------------------------------------------------------------------------------------------------------- tiny world


def test_tiny_world(tmp_path):
    found = {}
    for code, language in {"en": english, "de": german}.items():
        corpus = prepare(CaptioningConfig(data=DataConfig(cache=str(tmp_path), size=3, language=code)))
        assert corpus.sizes == {"train": 3, "valid": 3, "test": 3} and corpus.name == f"tiny world {code}"
        assert re.fullmatch(r"[\w.-]+", corpus.identity)
        found[code] = corpus
        for split in corpus.splits:
            for example in read(corpus, split):
                scene = json.loads(example["scene"])
                assert all(pictures.judge(caption, language, scene).true for caption in example["captions"])
                assert decode_picture(example["picture"], 32).std() > 0 and example["captions"]
    assert found["en"].identity != found["de"].identity
    english_ones, german_ones = (read(corpus, "train") for corpus in found.values())
    assert [each["picture"] for each in english_ones] == [each["picture"] for each in german_ones]


# --------------------------------------------------------------------------------------------------------- public sets


class UnrollTestPictures(tfds.core.GeneratorBasedBuilder):
    """A dataset in the registry of TFDS, made as public sets of pictures are."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "captions": tfds.features.Sequence({"id": np.int64, "text": np.str_}),
            "notes": tfds.features.Sequence(tfds.features.Text()),
            "title": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in ("train", "validation")}

    def _generate_examples(self):
        for number in range(4):
            file = io.BytesIO()
            Image.new("RGB" if number else "L", (40, 30), 60 * number).save(file, "JPEG", quality=40)
            file.seek(0)
            yield (
                number,
                {
                    "image": file,
                    "image/filename": f"{number % 3}.jpg",
                    "captions": [{"id": i, "text": f"caption {number}\n" * (i % 2)} for i in range(1 + number)],
                    "notes": ["a note", f"note {number}"],
                    "title": f"title {number}",
                    "label": 0,
                },
            )


def public(tmp_path, name="unroll_test_pictures", **data):
    return CaptioningConfig(data=DataConfig(corpus=f"tfds:{name}", cache=str(tmp_path), **data))


def test_public_sets_by_slice_and_feature(tmp_path, capsys):
    slices = {"train": "train[:3]", "valid": "train[3:]", "test": "validation[:50%]"}
    corpus = prepare(public(tmp_path, captions="notes", **slices))
    assert corpus.sizes == {"train": 3, "valid": 1, "test": 2} and corpus.name == "unroll_test_pictures"
    found = read(corpus, "train") + read(corpus, "valid")
    assert sorted(each["captions"] for each in found) == [["a note", f"note {number}"] for number in range(4)]
    for example in found:
        with Image.open(io.BytesIO(example["picture"])) as image:
            assert (image.mode, image.size) == ("RGB", (40, 30))
    titles = prepare(public(tmp_path, captions="title", **slices))
    assert {tuple(each["captions"]) for each in read(titles, "test")} < {(f"title {number}",) for number in range(4)}
    assert len({corpus.identity, titles.identity, prepare(public(tmp_path, captions="title")).identity}) == 3
    assert capsys.readouterr().out == ""


def test_examples_of_public_sets_without_a_caption(tmp_path, caplog):
    refused(public(tmp_path), "0.jpg: has no caption", "data.on_error=skip")
    corpus = prepare(public(tmp_path, on_error="skip"))
    assert corpus.sizes == {"train": 3, "valid": 3} and "train split: 1 of 4 pictures left out" in caplog.text
    captions = sorted(each["captions"] for each in read(corpus, "train"))
    assert captions == [["caption 1"], ["caption 2"], ["caption 3"] * 2]


def test_names_that_come_twice_in_a_public_set(tmp_path):
    names = [each["name"] for each in read(prepare(public(tmp_path, captions="notes")), "train")]
    assert {"0.jpg", "1.jpg", "2.jpg"} < set(names) and len(set(names)) == 4


def test_what_public_sets_lack(tmp_path):
    refused(public(tmp_path, captions="note"), "data.captions", "'note'", "captions/text, notes, title")
    refused(public(tmp_path, train="trian"), "data.train", "train, validation")
    refused(public(tmp_path, "coco_caption"), "coco_captions")
    refused(public(tmp_path, "tiny_shakespeare"), "no pictures")
    refused(public(tmp_path, "cifar10"), "data.captions", "''")


def test_coco_captions_of_tfds(tmp_path):
    names = {split: f"{split}.jpg" for split in ("train", "val", "test", "restval")}
    told = [
        {"filename": name, "split": split, "sentences": [{"sentid": 1, "raw": split}]} for split, name in names.items()
    ]
    write_json(tmp_path / "dataset_coco.json", {"images": told})
    content = {"annotations": [], "categories": [{"id": number, "name": f"thing {number}"} for number in range(80)]}
    for year, splits in {"train2014": ["train"], "val2014": ["val", "test", "restval"]}.items():
        content["images"] = [{"id": len(split), "file_name": names[split]} for split in splits]
        write_json(tmp_path / f"annotations/instances_{year}.json", content)
        for split in splits:
            picture(tmp_path / year / names[split], 20 * len(split))

    class Extracted(dict):
        def __missing__(self, key):
            return str(tmp_path)

    with mock.patch.object(tfds.download.DownloadManager, "download_and_extract", return_value=Extracted()):
        corpus = prepare(public(tmp_path / "cache", "coco_captions", valid="val"))
    assert told_in(corpus) == {
        "train": {"train.jpg": ["train"]},
        "valid": {"val.jpg": ["val"]},
        "test": {"test.jpg": ["test"]},
    }
    assert read(corpus, "train")[0]["picture"] == (tmp_path / "train2014/train.jpg").read_bytes()
