"""Corpora of speech: recordings come back bit for bit with phones, times and text; each fault is one line."""

import io
import json
import logging
import re
import sys
from unittest import mock

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from praatio import textgrid

from shared.recordings import decode_sound, encode_sound, read_alignment, read_phn, sound_blocks
from tasks.speech.config import DataConfig, SpeechConfig
from tasks.speech.corpus import Recordings, manifest_recordings, prepare, timit_recordings
from tests.errors import one_line_error

PHN = "0 1600 h#\n1600 4000 sh\n4000 8000 iy\n"


def read_sound(path):
    rate, blocks = sound_blocks(path, 60.0)
    return np.concatenate(list(blocks)), rate


def sine(seconds=0.5, rate=16000, pitch=440.0):
    """Float32 samples that 16 bits hold exactly."""
    times = np.arange(round(seconds * rate)) / rate
    return (np.round(12000 * np.sin(2 * np.pi * pitch * times)) / 32768).astype(np.float32)


def record(path, samples=None, rate=16000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sine() if samples is None else samples, rate, **options)
    return path


def sphere(path, samples=None, order="01", coding="pcm", promised=None):
    """A file with the header that TIMIT's have."""
    values = np.round((sine() if samples is None else samples) * 32768).astype("<i2" if order == "01" else ">i2")
    header = (
        "NIST_1A\n   1024\ndatabase_id -s5 TIMIT\ndatabase_version -s3 1.0\nutterance_id -s8 cjf0_sa1\n"
        f"channel_count -i 1\nsample_count -i {promised or len(values)}\nsample_rate -i 16000\n"
        "sample_min -i -12000\nsample_max -i 12000\nsample_n_bytes -i 2\n"
        f"sample_byte_format -s2 {order}\nsample_coding -s{len(coding)} {coding}\nsample_sig_bits -i 16\nend_head\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.encode().ljust(1024) + values.tobytes())
    return path


def text_grid(path, phones, end, name="phones"):
    grid = textgrid.Textgrid(0, end)
    grid.addTier(textgrid.IntervalTier("words", [(0, end, "word")], 0, end))
    grid.addTier(textgrid.IntervalTier(name, [(start, stop, phone) for phone, start, stop in phones], 0, end))
    grid.save(str(path), "long_textgrid", includeBlankSpaces=True)
    return path


def manifest(folder, stem, rows, kind="csv"):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(row) for row in rows]
    if kind != "jsonl":
        separator = {"csv": ",", "tsv": "\t"}[kind]
        lines = [separator.join(columns), *(separator.join(row.get(name, "") for name in columns) for row in rows)]
    (folder / f"{stem}.{kind}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def own(tmp_path):
    """A manifest of three recordings to train on and one to validate with."""
    folder = tmp_path / "own"
    for number in range(4):
        record(folder / f"clips/{number}.wav", sine(pitch=300 + number))
    train = [{"audio": f"clips/{number}.wav", "phones": "a b", "text": "some words"} for number in range(3)]
    manifest(folder, "train", train)
    manifest(folder, "valid", [{"audio": "clips/3.wav", "phones": "b", "text": "more"}])
    return folder


@pytest.fixture
def timit(tmp_path):
    """Three speakers with three sentences each, as the public sample of TIMIT has them."""
    folder = tmp_path / "timit"
    for speaker in ("dr1-fabc0", "dr1-mdef0", "dr2-fghi0"):
        for stem in ("sa1", "si1466", "sx7"):
            path = record(folder / speaker / f"{stem}.wav")
            path.with_suffix(".phn").write_text(PHN)
            path.with_suffix(".txt").write_text(f"0 8000 She said {stem}.\n")
            path.with_suffix(".wrd").write_text("1600 8000 she\n")
    return folder


def configured(folder, corpus="manifest", **data):
    options = {"corpus": corpus, "dir": str(folder), "cache": str(folder.parent / "cache")} | data
    return SpeechConfig(data=DataConfig(**options))


def read(corpus, split):
    """Examples of a split with text for strings; the ids count them."""
    found = []
    for example in corpus.splits[split]().as_numpy_iterator():
        texts = {name: example[name].decode() for name in ("name", "speaker", "phones", "text")}
        found.append({**example, **texts})
        assert set(example) == {"id", "name", "speaker", "sound", "seconds", "phones", "starts", "ends", "text"}
        assert len(example["starts"]) == len(example["ends"])
    assert [example["id"] for example in found] == list(range(corpus.sizes[split]))
    return found


def column(corpus, split, name):
    return [example[name] for example in read(corpus, split)]


def refused(config, *parts):
    return one_line_error(lambda: prepare(config), *parts)


# --------------------------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 96000])
def test_sound_is_kept_bit_for_bit_at_its_own_rate(tmp_path, rate):
    samples = sine(0.3, rate)
    for name in ("a.wav", "a.flac", "a.aiff"):
        found, found_rate = read_sound(record(tmp_path / name, samples, rate, subtype="PCM_16"))
        assert found.dtype == np.float32 and found_rate == rate
        np.testing.assert_array_equal(found, samples)
    kept, kept_rate = decode_sound(encode_sound(samples, rate))
    assert kept.dtype == np.float32 and kept_rate == rate
    np.testing.assert_array_equal(kept, samples)


@pytest.mark.parametrize("samples", [np.zeros(16000), np.ones(1), -np.ones(3), 5 * sine(0.1)])
def test_silence_one_sample_and_what_is_too_loud_are_kept(samples):
    kept, _ = decode_sound(encode_sound(samples, 16000))
    np.testing.assert_allclose(kept, np.clip(samples, -1, 32767 / 32768), atol=2**-16)


def test_channels_are_averaged(tmp_path):
    left, right = sine(pitch=200), sine(pitch=500)
    found, _ = read_sound(record(tmp_path / "stereo.wav", np.stack([left, right], axis=1), subtype="FLOAT"))
    np.testing.assert_allclose(found, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
def test_blocks_are_the_whole(tmp_path, name):
    path = record(tmp_path / name, sine(2.05))
    whole, rate = read_sound(path)
    block_rate, blocks = sound_blocks(path, 0.25)
    blocks = list(blocks)
    assert block_rate == rate == 16000
    assert [len(block) for block in blocks] == [4000] * 8 + [len(whole) - 32000]
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-4)
    assert np.corrcoef(whole[: len(sine(2))], sine(2))[0, 1] > 0.99


@pytest.mark.parametrize("order", ["01", "10"])
def test_sphere_files_are_read(tmp_path, order):
    found, rate = read_sound(sphere(tmp_path / "SA1.WAV", order=order))
    assert rate == 16000
    np.testing.assert_array_equal(found, sine())


def test_files_that_are_no_sound(tmp_path):
    record(tmp_path / "voice.wav")
    one_line_error(lambda: read_sound(tmp_path / "voise.wav"), tmp_path / "voise.wav", "no such file", "voice.wav")
    one_line_error(lambda: read_sound(tmp_path), tmp_path, "cannot be read")
    for name, content in {"a.wav": b"RIFF", "b.mp3": b"words", "c.m4a": b"\0\0\0\x20ftypM4A ", "d.raw": b"12"}.items():
        (tmp_path / name).write_bytes(content)
        one_line_error(lambda path=tmp_path / name: read_sound(path), tmp_path / name, "not sound", "m4a", "ffmpeg")
    (tmp_path / "empty.wav").touch()
    one_line_error(lambda: read_sound(tmp_path / "empty.wav"), tmp_path / "empty.wav", "0 bytes")
    record(tmp_path / "short.wav", np.zeros(0))
    one_line_error(lambda: read_sound(tmp_path / "short.wav"), tmp_path / "short.wav", "0 samples")
    record(tmp_path / "nan.wav", np.full(10, np.nan), subtype="FLOAT")
    one_line_error(lambda: read_sound(tmp_path / "nan.wav"), tmp_path / "nan.wav", "no numbers")


def test_shortened_sphere_files_say_how_to_convert_them(tmp_path):
    path = sphere(tmp_path / "SA1.WAV", coding="pcm,embedded-shorten-v2.00")
    one_line_error(lambda: read_sound(path), path, "shorten", "sph2pipe")


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.flac", "a.mp3", "a.rf64", "a.w64", "a.nist"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_sound_that_was_cut_off(tmp_path, name, share):
    path = record(tmp_path / name, sine(2), format=name[2:].upper())
    assert len(read_sound(path)[0]) == 32000
    content = path.read_bytes()
    path.write_bytes(content[: round(share * len(content))])
    one_line_error(lambda: read_sound(path), path, "cut off")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF])
def test_a_wav_written_to_a_pipe_is_whole(tmp_path, size):
    path = record(tmp_path / "a.wav")
    content = path.read_bytes()
    path.write_bytes(content[:40] + size.to_bytes(4, "little") + content[44:])
    np.testing.assert_array_equal(read_sound(path)[0], sine())


def test_a_flac_written_to_a_pipe_is_whole(tmp_path):
    path = record(tmp_path / "a.flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_sound(path)[0], sine())
    path.write_bytes(content[:-1000])
    one_line_error(lambda: read_sound(path), path, "cut off")


# ---------------------------------------------------------------------------------------------------------- alignments


def test_alignments_of_every_kind_agree(tmp_path):
    segments = [("h#", 0.0, 0.1), ("sh", 0.1, 0.25), ("iy", 0.25, 0.5)]
    (tmp_path / "a.PHN").write_text(PHN)
    (tmp_path / "a.ctm").write_text(";; phones\na 1 0.0 0.1 h#\na 1 0.1 0.15 sh 0.9\n\na 1 0.25 0.25 iy 1\n")
    grid = text_grid(tmp_path / "a.TextGrid", segments, 0.5)
    assert [phone for phone, _, _ in read_alignment(grid, "words")] == ["word"]
    for found in (
        read_alignment(grid, "phones"),
        read_alignment(tmp_path / "a.ctm", ""),
        read_phn(tmp_path / "a.PHN", 16000),
    ):
        assert [phone for phone, _, _ in found] == ["h#", "sh", "iy"]
        np.testing.assert_allclose([times for _, *times in found], [times for _, *times in segments])
    assert read_phn(tmp_path / "a.PHN", 8000)[-1] == ("iy", 0.5, 1.0)


def test_gaps_in_an_alignment_have_no_phone(tmp_path):
    grid = text_grid(tmp_path / "a.TextGrid", [("a", 0.1, 0.2), ("b", 0.3, 0.4)], 0.5)
    assert read_alignment(grid, "phones") == [("a", 0.1, 0.2), ("b", 0.3, 0.4)]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.ctm", "a 1 0.0 0.1 a\na 1 0.05 0.1 b\n", ["'b' from 0.050", "overlaps", "0.100"]),
        ("a.ctm", "a 1 -0.1 0.2 a\n", ["'a' from -0.100", "negative"]),
        ("a.ctm", "a 1 0.1 0 a\n", ["lasts no time"]),
        ("a.ctm", "a 1 nan 0.1 a\n", ["negative"]),
        ("a.ctm", "a 1 0.1 soon a\n", ["line 1", "recording channel start duration phone", "soon"]),
        ("a.ctm", "a 1 0.1\n", ["line 1", "recording channel start duration phone"]),
        ("a.ctm", "a 1 0.0 0.1 a\nb 1 0.1 0.1 a\n", ["2 recordings"]),
        ("a.ctm", "", ["no phone"]),
        ("a.TextGrid", "no text grid", ["cannot be read as a TextGrid"]),
        ("a.TextGrid", "", ["cannot be read as a TextGrid"]),
        ("a.lab", "0 1 a", [".TextGrid, .ctm and .phn"]),
    ],
)
def test_alignments_that_cannot_be_used(tmp_path, name, content, parts):
    path = tmp_path / name
    path.write_text(content)
    one_line_error(lambda: read_alignment(path, "phones"), path, *parts)


def test_tiers_that_a_text_grid_lacks(tmp_path):
    grid = text_grid(tmp_path / "a.TextGrid", [("a", 0.1, 0.2)], 0.5, name="phone")
    one_line_error(lambda: read_alignment(grid, "phones"), grid, "data.tier", "words, phone")
    one_line_error(lambda: read_alignment(tmp_path / "b.TextGrid", "phones"), tmp_path / "b.TextGrid")
    blank = text_grid(tmp_path / "c.TextGrid", [("a b", 0.1, 0.2)], 0.5)
    one_line_error(lambda: read_alignment(blank, "phones"), blank, "'a b'", "blank")


# --------------------------------------------------------------------------------------------------------------- timit


def test_the_samples_layout_is_split_by_speakers(timit, capsys):
    corpus = prepare(configured(timit, "timit", train=".", valid_speakers=["DR1-mdef0"]))
    assert corpus.sizes == {"train": 6, "valid": 3} and corpus.name == "timit" and not corpus.optimum
    assert column(corpus, "valid", "name") == ["dr1-mdef0/sa1", "dr1-mdef0/si1466", "dr1-mdef0/sx7"]
    assert set(column(corpus, "train", "speaker")) == {"dr1-fabc0", "dr2-fghi0"}
    example = read(corpus, "train")[1]
    assert (example["text"], example["phones"]) == ("She said si1466.", "h# sh iy")
    assert example["starts"].dtype == np.float64 and example["seconds"] == np.float32(0.5)
    np.testing.assert_allclose(example["starts"], [0, 0.1, 0.25], rtol=1e-6)
    np.testing.assert_allclose(example["ends"], [0.1, 0.25, 0.5], rtol=1e-6)
    sound, rate = decode_sound(example["sound"])
    np.testing.assert_array_equal(sound, sine())
    assert rate == 16000 and capsys.readouterr().out == ""


def test_a_test_split_of_speakers(timit):
    speakers = {"valid_speakers": ["dr1-mdef0"], "test_speakers": ["dr2-fghi0"]}
    found = timit_recordings(configured(timit, "timit", train=".", **speakers).data)
    assert {split: {each.speaker for each in recordings} for split, recordings in found.items()} == {
        "train": {"dr1-fabc0"},
        "valid": {"dr1-mdef0"},
        "test": {"dr2-fghi0"},
    }
    speakers = {"valid_speakers": ["dr1-mdef0"], "test_speakers": ["dr1-mdef0"]}
    refused(configured(timit, "timit", train=".", **speakers), "data.test_speakers", "dr1-mdef0", "validation")


@pytest.mark.parametrize(("case", "write"), [(str.upper, sphere), (str.lower, record)], ids=["sphere", "riff"])
def test_the_full_layout_in_either_case(tmp_path, case, write):
    folder = tmp_path / "corpus"
    for split, speakers in {"train": ("fcjf0", "mdac0"), "test": ("faks0", "mdab0")}.items():
        for speaker in speakers:
            path = folder / case(f"{split}/dr1/{speaker}/sa1.wav")
            write(path)
            path.with_suffix(case(".phn")).write_text(PHN)
    path = write(folder / case("train/dr1/fcjf0/sx1.wav"))
    path.with_suffix(case(".phn")).write_text(PHN)
    corpus = prepare(configured(folder, "timit", valid_speakers=["MDAC0"]))
    assert corpus.sizes == {"train": 2, "valid": 1, "test": 2}
    for example in read(corpus, "test"):
        assert (example["phones"], example["text"]) == ("h# sh iy", "")
        np.testing.assert_array_equal(decode_sound(example["sound"])[0], sine())
    names = {"train": ["fcjf0/sa1", "fcjf0/sx1"], "valid": ["mdac0/sa1"], "test": ["faks0/sa1", "mdab0/sa1"]}
    assert names_of(configured(folder, "timit", valid_speakers=["mdac0"])) == names
    # What lies in the folder of the test split is no part of training, wherever that folder is, or whoever is tested.
    assert names_of(configured(folder, "timit", train=".", valid_speakers=["mdac0"])) == names
    core = configured(folder, "timit", train=".", valid_speakers=["mdac0"], test_speakers=["mdab0"])
    assert names_of(core) == names | {"test": ["mdab0/sa1"]}
    own = configured(folder, "timit", test="", valid_speakers=["mdac0"], test_speakers=["fcjf0"])
    assert names_of(own) == {"train": [], "valid": names["valid"], "test": names["train"]}


def names_of(config):
    return {split: [each.name for each in found] for split, found in timit_recordings(config.data).items()}


def test_a_second_copy_of_a_recording_is_left_alone(timit):
    record(timit / "dr1-fabc0/sa1.wav.wav")
    record(timit / "dr1-fabc0/._sx7.wav")
    assert len(names_of(configured(timit, "timit", train=".", valid_speakers=["dr1-mdef0"]))["train"]) == 6


def test_labels_may_end_just_after_or_well_before_the_sound(timit):
    (timit / "dr1-fabc0/sa1.phn").write_text("0 4000 h#\n4000 8001 a\n")
    (timit / "dr1-fabc0/sx7.phn").write_text("0 4000 h#\n")
    found = read(prepare(configured(timit, "timit", train=".", valid_speakers=["dr1-mdef0"])), "train")
    assert found[0]["ends"][-1] == 0.5 and found[2]["ends"][-1] == 0.25


def test_what_a_timit_folder_lacks(timit):
    options = {"corpus": "timit", "train": "."}
    refused(configured(timit, **options), "data.valid_speakers", "missing")
    message = refused(configured(timit, valid_speakers=["dr1-fabd0"], **options), "data.valid_speakers", "dr1-fabd0")
    assert "did you mean dr1-fabc0" in message
    everyone = [folder.name for folder in timit.iterdir()]
    refused(configured(timit, valid_speakers=everyone, **options), "data.train", "0 recordings")
    refused(configured(timit, "timit", train="trian"), timit / "trian", "data.train")
    refused(configured(timit.parent / "tmit", **options), "tmit", "data.dir", "timit")
    (timit / "train").mkdir()
    refused(configured(timit, "timit", train="train"), timit / "train", "no .wav file")
    (timit / "dr1-fabc0/sa1.phn").unlink()
    valid = {"valid_speakers": ["dr1-mdef0"]}
    refused(configured(timit, **options, **valid), timit / "dr1-fabc0/sa1.phn", "No such file", "data.on_error=skip")


# ------------------------------------------------------------------------------------------------------------ manifests


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_manifests(tmp_path, kind):
    folder = tmp_path / "own"
    record(folder / "clips/a.flac", sine(rate=8000), 8000)
    record(tmp_path / "b.wav", np.zeros(16000))
    (folder / "a.ctm").write_text("a 1 0.1 0.2 A\na 1 0.3 0.23 B\n")
    rows = [
        {"file": "clips/a.flac", "words": 'he said "hä"', "who": "7", "age": "9", "said": "X  Y", "times": "a.ctm"},
        {"file": "../b.wav", "words": "", "who": "", "age": "", "said": " X  Y ", "times": ""},
    ]
    if kind == "csv":
        rows[0]["words"] = '"he said ""hä"""'
    if kind == "jsonl":
        rows[0]["who"], rows[1] = 7, {"file": "../b.wav", "words": None, "said": ["X", "Y"]}
    for stem in ("train", "valid"):
        manifest(folder, stem, rows, kind)
    names = {"audio": "file", "text": "words", "speaker": "who", "phones": "said", "alignment": "times"}
    first, second = read(prepare(configured(folder, **names)), "train")
    assert (first["name"], first["speaker"], first["text"]) == ("clips/a.flac", "7", 'he said "hä"')
    assert first["phones"] == "A B"  # the alignment's, whatever the manifest says
    np.testing.assert_allclose(first["starts"], [0.1, 0.3], rtol=1e-6)
    np.testing.assert_allclose(first["ends"], [0.3, 0.5], rtol=1e-6)  # cut off where the sound ends
    assert decode_sound(first["sound"])[1] == 8000
    assert (second["name"], second["speaker"], second["text"], second["phones"]) == ("../b.wav", "", "", "X Y")
    assert len(second["starts"]) == 0 and not decode_sound(second["sound"])[0].any()


def test_a_manifest_may_name_phn_files_and_have_a_test_split(own):
    (own / "a.phn").write_text(PHN)
    manifest(own, "held", [{"audio": "clips/0.wav", "alignment": "a.phn"}])
    corpus = prepare(configured(own, test="held.csv"))
    assert corpus.sizes == {"train": 3, "valid": 1, "test": 1}
    assert column(corpus, "test", "phones") == ["h# sh iy"]
    (own.parent / "own.csv").write_text("audio\n")
    # Speakers may be in all splits, unless they are what tells the splits apart.
    for number, stem in enumerate(("train", "valid", "held")):
        manifest(own, stem, [{"audio": f"clips/{number}.wav", "speaker": "anna"}])
    found = manifest_recordings(configured(own, test="held.csv").data)
    assert all([each.speaker for each in some] == ["anna"] for some in found.values()) and len(found) == 3
    assert set(manifest_recordings(configured(own, test="").data)) == {"train", "valid"}
    assert set(manifest_recordings(configured(own).data)) == {"train", "valid"}


def test_manifests_that_cannot_be_used(own):
    refused(configured(own, audio="path"), own / "train.csv", "'path'", "data.audio", "audio, phones, text")
    message = refused(configured(own, text="txt"), own / "train.csv", "'txt'", "data.text", "audio, phones, text")
    assert "did you mean text" in message
    assert read(prepare(configured(own, text="")), "train")[0]["text"] == ""
    refused(configured(own, valid="vaild"), own / "vaild.csv", "data.valid", "valid.csv")
    for content in ("", "audio,text\n"):
        (own / "valid.csv").write_text(content)
        refused(configured(own), own / "valid.csv", "no recording")
    (own / "valid.csv").write_text('audio,text\nclips/3.wav,"never closed\n')
    refused(configured(own), own / "valid.csv", "cannot be read at line")
    (own / "valid.csv").write_bytes(b"audio,text\nclips/3.wav,\xff\n")
    refused(configured(own), own / "valid.csv", "line 2", "UTF-8")
    (own / "valid.csv").unlink()
    for content in ('{"audio": "clips/3.wav"}\n{"audio"\n', '{"audio": "clips/3.wav"}\n[1]\n'):
        (own / "valid.jsonl").write_text(content)
        refused(configured(own), own / "valid.jsonl", "line 2")


FAULTS = {
    "missing": ("no such file", "clips/none.wav", ""),
    "junk": ("not sound", "clips/junk.wav", ""),
    "cut": ("cut off", "clips/cut.wav", ""),
    "empty": ("0 samples", "clips/empty.wav", ""),
    "unnamed": ("no sound file in 'audio'", "", ""),
    "twice": ("twice", "clips/0.wav", ""),
    "cells": ("more cells than columns", "clips/1.wav", "a.ctm,"),
    "late": ("ends at 0.600 s, after its sound, which ends at 0.500 s", "clips/1.wav", "late.ctm"),
    "beyond": ("after its sound", "clips/1.wav", "beyond.ctm"),
    "overlap": ("overlaps", "clips/1.wav", "overlap.ctm"),
    "unaligned": ("none.ctm", "clips/1.wav", "none.ctm"),
    "grid": ("cannot be read as a TextGrid", "clips/1.wav", "junk.TextGrid"),
}


@pytest.fixture
def faulty(own):
    (own / "clips/junk.wav").write_text("words")
    (own / "clips/cut.wav").write_bytes((own / "clips/0.wav").read_bytes()[:-1000])
    record(own / "clips/empty.wav", np.zeros(0))
    (own / "late.ctm").write_text("a 1 0.0 0.6 a\n")
    (own / "beyond.ctm").write_text("a 1 0.0 0.5 a\na 1 0.5 0.02 b\n")
    (own / "overlap.ctm").write_text("a 1 0.0 0.3 a\na 1 0.2 0.3 b\n")
    (own / "junk.TextGrid").write_text("words")
    return own


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_recording_stops_with_its_line(faulty, fault):
    message, audio, alignment = FAULTS[fault]
    manifest(faulty, "train", [{"audio": "clips/0.wav", "alignment": ""}, {"audio": audio, "alignment": alignment}])
    refused(configured(faulty), f"{faulty / 'train.csv'}: line 3: ", message, "data.on_error=skip")


def test_faulty_recordings_are_left_out_and_counted(faulty, caplog):
    rows = [{"audio": audio, "alignment": alignment} for _, audio, alignment in FAULTS.values()]
    rows = [{"audio": "clips/0.wav", "alignment": ""}, *rows, {"audio": "clips/2.wav", "alignment": ""}]
    manifest(faulty, "train", rows)
    with caplog.at_level(logging.WARNING):
        corpus = prepare(configured(faulty, on_error="skip"))
    assert column(corpus, "train", "name") == ["clips/0.wav", "clips/2.wav"]
    for number, (message, _, _) in enumerate(FAULTS.values(), start=3):
        assert re.search(rf"left out: .*train\.csv: line {number}: .*{re.escape(message)}", caplog.text)
    assert f"train split: {len(FAULTS)} of {len(FAULTS) + 2} recordings left out" in caplog.text
    manifest(faulty, "train", rows[1:2])
    refused(configured(faulty, on_error="skip"), "data.train", "none of its 1 recordings")


# ----------------------------------------------------------------------------------------------------------- conversion


def test_conversion_happens_once_wherever_the_recordings_are(own, tmp_path):
    first = prepare(configured(own))
    (tmp_path / "elsewhere").mkdir()
    moved = own.rename(tmp_path / "elsewhere" / own.name)
    manifest(moved, "train", [row | {"note": "new"} for row in rows_of(moved / "train.csv")])
    with mock.patch.object(Recordings, "_generate_examples", side_effect=AssertionError("converted again")):
        second = prepare(configured(moved, cache=str(tmp_path / "cache")))
    assert first.identity == second.identity and re.fullmatch(r"[\w.-]+", first.identity)
    assert column(first, "train", "sound") == column(second, "train", "sound")


def rows_of(path):
    head, *lines = path.read_text().splitlines()
    return [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]


def test_every_other_content_has_another_identity(own):
    found = [prepare(configured(own)).identity, prepare(configured(own, on_error="skip")).identity]
    rows = [row | {"alignment": "a.ctm"} for row in rows_of(own / "train.csv")]
    for changed in ("0.1", "0.2"):  # an alignment of the same size
        (own / "a.ctm").write_text(f"a 1 {changed} 0.1 a\n")
        manifest(own, "train", rows)
        found.append(prepare(configured(own)).identity)
    record(own / "clips/2.wav", sine(0.4))
    found.append(prepare(configured(own)).identity)
    manifest(own, "train", rows[:2])
    found.append(prepare(configured(own)).identity)
    assert len(set(found)) == len(found)


def test_recordings_are_read_one_by_one(own):
    # The generator must hand out examples before it has read all: the last recording is wrong, the first two are not.
    (own / "clips/2.wav").write_text("words")
    seen = []
    original = Recordings._generate_examples

    def counted(self, split):
        for key, example in original(self, split):
            seen.append(example["name"])
            yield key, example

    with mock.patch.object(Recordings, "_generate_examples", counted):
        refused(configured(own), "clips/2.wav")
    assert seen == ["clips/0.wav", "clips/1.wav"]


def test_the_order_survives_sorting_on_disk(own):
    rows = [{"audio": f"./{'./' * number}clips/0.wav", "text": str(number)} for number in range(40)]
    manifest(own, "train", rows)
    with mock.patch("shared.corpora.SHUFFLE_MEMORY", 1000):
        corpus = prepare(configured(own))
    assert column(corpus, "train", "text") == [str(number) for number in range(40)]


# ----------------------------------------------------------------------------------------------------------- tiny world


def test_tiny_world(tmp_path):
    corpus = prepare(SpeechConfig(data=DataConfig(cache=str(tmp_path), size=2)))
    assert corpus.sizes == {"train": 2, "valid": 2, "test": 2} and not corpus.optimum
    assert corpus.name == "tiny world" and re.fullmatch(r"[\w.-]+", corpus.identity)
    for split in corpus.splits:
        for example in read(corpus, split):
            samples, rate = decode_sound(example["sound"])
            assert len(samples) / rate == pytest.approx(example["seconds"])
            assert len(example["phones"].split()) == len(example["starts"]) > 3 and example["text"]


# ---------------------------------------------------------------------------------------------------------- public sets


class UnrollTestSounds(tfds.core.GeneratorBasedBuilder):
    """A dataset in the registry of TFDS, made as the public speech sets are."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "noise": tfds.features.Audio(),
            "speech": tfds.features.Audio(sample_rate=8000, dtype=np.int16),
            "label": tfds.features.ClassLabel(names=["no", "yes"]),
            "note": tfds.features.Text(),
            "speaker_id": np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in ("train", "validation")}

    def _generate_examples(self):
        for number in range(4):
            file = io.BytesIO()
            soundfile.write(file, sine(0.1, 8000, 300 + number), 8000, format="FLAC")
            file.seek(0)
            yield (
                number,
                {
                    "noise": np.zeros(3, np.int64),
                    "speech": file,
                    "label": number % 2,
                    "note": f"note {number}",
                    "speaker_id": number,
                },
            )


def public(tmp_path, name, **data):
    return SpeechConfig(data=DataConfig(corpus=f"tfds:{name}", cache=str(tmp_path), **data))


def test_public_sets_by_name_without_a_library_for_their_sound(tmp_path, capsys):
    corpus = prepare(public(tmp_path, "unroll_test_sounds"))
    assert corpus.sizes == {"train": 4, "valid": 4} and "pydub" not in sys.modules
    found = read(corpus, "train")
    assert [example["name"] for example in found] == [f"train-0000{number}" for number in range(4)]
    for example in found:
        number = int(example["speaker"])
        samples, rate = decode_sound(example["sound"])
        np.testing.assert_array_equal(samples, sine(0.1, 8000, 300 + number))
        assert rate == 8000 and example["seconds"] == np.float32(0.1) and len(example["starts"]) == 0
        assert (example["text"], example["phones"]) == (["no", "yes"][number % 2], "")
    assert column(corpus, "train", "sound") == [example["sound"] for example in found]
    assert capsys.readouterr().out == ""


def test_public_sets_by_slice_and_feature(tmp_path):
    slices = {"train": "train[:3]", "valid": "train[3:]", "test": "validation[:50%]"}
    corpus = prepare(public(tmp_path, "unroll_test_sounds", text="note", **slices))
    assert corpus.sizes == {"train": 3, "valid": 1, "test": 2}
    notes = column(corpus, "train", "text") + column(corpus, "valid", "text")
    assert sorted(notes) == [f"note {number}" for number in range(4)]
    assert corpus.identity != prepare(public(tmp_path, "unroll_test_sounds", **slices)).identity
    refused(public(tmp_path, "unroll_test_sounds", text="nota"), "data.text", "'nota'", "note")
    refused(public(tmp_path, "unroll_test_sounds", train="trian"), "data.train", "train, validation")
    refused(public(tmp_path, "spoken_digits"), "spoken_digit")
    refused(public(tmp_path, "tiny_shakespeare"), "no sound")


@pytest.mark.parametrize("name", ["speech_commands", "spoken_digit", "librispeech"])
def test_mocked_public_sets(tmp_path, name):
    splits = {
        "speech_commands": {},
        "spoken_digit": {"train": "train[:50%]", "valid": "train[50%:]"},
        "librispeech": {"train": "train_clean100", "valid": "dev_clean", "test": "test_clean"},
    }[name]
    with tfds.testing.mock_data(num_examples=4):
        corpus = prepare(public(tmp_path, name, **splits))
        found = read(corpus, "train")
    assert {"train", "valid"} <= set(corpus.splits) and len(found) == corpus.sizes["train"] > 0
    rate = 8000 if name == "spoken_digit" else 16000
    assert all(decode_sound(example["sound"])[1] == rate and example["text"] for example in found)
    assert all(bool(example["speaker"]) == (name == "librispeech") for example in found)
    if name == "spoken_digit":
        assert {example["text"] for example in found} <= {str(digit) for digit in range(10)}


def test_the_real_builders_read_sound_without_other_programs(tmp_path):
    digits = tmp_path / "free-spoken-digit-dataset-1.0.9/recordings"
    for name in ("7_anna_0", "3_anna_1"):
        record(digits / f"{name}.wav", sine(0.2, 8000), 8000)
    manager = tfds.download.DownloadManager
    with mock.patch.object(manager, "download_and_extract", return_value=str(tmp_path)):
        corpus = prepare(public(tmp_path / "cache", "spoken_digit", train="train[:1]", valid="train[1:]"))
    found = read(corpus, "train") + read(corpus, "valid")
    assert {example["name"]: example["text"] for example in found} == {"7_anna_0.wav": "7", "3_anna_1.wav": "3"}
    np.testing.assert_array_equal(decode_sound(found[0]["sound"])[0], sine(0.2, 8000))
