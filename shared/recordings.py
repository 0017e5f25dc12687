"""Recordings and their alignments: files of many kinds flow in; samples, FLAC and timed phones flow out.

Whatever is wrong with a file is a `UserError` of one line.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from praatio import textgrid

from shared import corpora
from shared.config import UserError, missing_path, one_line

BLOCK_SECONDS = 60.0
TOLERANCE = 0.05  # seconds that an alignment may reach beyond its sound, where it is cut, or an MP3 may lack
ROUNDING = 0.001  # seconds that a label may begin before the last one ends; they are cut off
STREAMED = 0x7FFF0000  # bytes; programs that write to a pipe put such a size or a greater one into the header
UNKNOWN = 1 << 62  # samples; libsndfile's for a FLAC that was written to a pipe is greater
CUT_OFF = re.compile(r"(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)")  # libsndfile's words

SOUND = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".sph")  # endings, in lower case, of what is read in folders

Segments = list[tuple[str, float, float]]


# --------------------------------------------------------------------------------------------------------------- sound


def sound_blocks(path: str | Path, seconds: float) -> tuple[int, Iterator[np.ndarray]]:
    """(sample rate in Hz, blocks of at most `seconds`: float32 (n,) in [-1, 1], channels averaged).

    Reads what libsndfile knows: WAV, FLAC, OGG, MP3, AIFF, NIST SPHERE and more. UserError for a file that is missing,
    is not sound, holds none, or was cut off, which is told at once or behind the last block (never of OGG, which does
    not say how long it should be).
    """
    path = Path(path)
    try:
        with open(path, "rb") as opened:
            header = opened.read(1024)
    except OSError as error:
        wrong = UserError(f"{path}: cannot be read: {error.strerror}") if path.exists() else missing_path(path, "file")
        raise wrong from error
    try:
        file = _SoundFile(path)
    except (soundfile.SoundFileError, TypeError) as error:  # the latter for what is called .raw
        raise _no_sound(path, header) from error
    promised = re.search(rb"sample_count -i (\d+)", header) if file.format == "NIST" else None
    sizes = [(int(said), int(found)) for said, found in CUT_OFF.findall(file.extra_info)]
    if (promised and file.frames < int(promised[1])) or any(found + 1 < said < STREAMED for said, found in sizes):
        raise UserError(f"{path}: cut off: it holds less sound than its header says; copy or record it again")
    return file.samplerate, _blocks(path, file, max(int(seconds * file.samplerate), 1))


class _SoundFile(soundfile.SoundFile):
    """Reads on from where it is; the seeking that soundfile does after each block damages the next one of an MP3."""

    def seekable(self) -> bool:
        return False


def _blocks(path: Path, file: soundfile.SoundFile, size: int) -> Iterator[np.ndarray]:
    count = 0
    with file:
        try:
            while len(block := file.read(size, dtype="float32", always_2d=True)):
                if not np.isfinite(block).all():
                    raise UserError(f"{path}: holds samples that are no numbers; write it anew")
                count += len(block)
                yield np.clip(block.mean(axis=1), -1, 1)
        except soundfile.SoundFileError as error:
            raise UserError(f"{path}: damaged or cut off behind {count / file.samplerate:.2f} s") from error
        if count == 0:
            raise UserError(f"{path}: holds no sound (0 samples)")
        if count + TOLERANCE * file.samplerate < file.frames < UNKNOWN:
            raise UserError(f"{path}: cut off: it holds {count} of the {file.frames} samples that its header says")


def _no_sound(path: Path, header: bytes) -> UserError:
    if not header:
        return UserError(f"{path}: empty (0 bytes)")
    if header.startswith(b"NIST_1A") and b"shorten" in header:
        return UserError(f"{path}: compressed with shorten, which cannot be read; convert it (sph2pipe -f wav OLD NEW)")
    return UserError(
        f"{path}: not sound that can be read; WAV, FLAC, OGG, MP3, AIFF and NIST SPHERE can be: convert other kinds, "
        f"such as m4a, first (ffmpeg -i {path.name} {path.stem}.wav)"
    )


def convert_sound(path: str | Path) -> tuple[bytes, int, float]:
    """A recording as `encode_sound` keeps it, its sample rate in Hz and its seconds; at no time all of its samples."""
    rate, blocks = sound_blocks(path, BLOCK_SECONDS)
    content = _flac(blocks, rate)
    return content, rate, soundfile.info(io.BytesIO(content)).duration


def encode_sound(samples: np.ndarray, rate: int) -> bytes:
    """Samples, float (n,) in [-1, 1], at least one, as 16-bit FLAC; what was 16-bit before comes back bit for bit."""
    return _flac([samples], rate)


def decode_sound(content: bytes) -> tuple[np.ndarray, int]:
    """What `encode_sound` wrote: (samples, float32 (n,) in [-1, 1], sample rate in Hz)."""
    return soundfile.read(io.BytesIO(content), dtype="float32")


def _flac(blocks: Iterable[np.ndarray], rate: int) -> bytes:
    content = io.BytesIO()
    with soundfile.SoundFile(content, "w", rate, 1, "PCM_16", format="FLAC") as file:
        for block in blocks:
            file.write(np.clip(np.round(block * 32768), -32768, 32767).astype(np.int16))
    return content.getvalue()


# ---------------------------------------------------------------------------------------------------------- alignments


def read_alignment(path: str | Path, tier: str) -> Segments:
    """[(phone, start, end)], in order and in seconds, of a TextGrid's tier of intervals or of a CTM of one recording.

    Intervals without a label are left out. UserError for a file that cannot be read, has no such tier, or in which an
    interval overlaps the one before it or lasts no time.
    """
    path = Path(path)
    if path.suffix.lower() == ".textgrid":
        return _ordered(path, _text_grid(path, tier))
    if path.suffix.lower() != ".ctm":
        raise UserError(f"{path}: not an alignment that can be read, which are .TextGrid, .ctm and .phn")
    recordings = set()

    def parse(recording, channel, start, duration, phone, *confidence):
        recordings.add(recording)
        return phone, float(start), float(start) + float(duration)

    segments = _parsed(path, "recording channel start duration phone", parse)
    if len(recordings) > 1:
        raise UserError(f"{path}: of {len(recordings)} recordings; give each of them a file of its own")
    return segments


def read_phn(path: str | Path, rate: int) -> Segments:
    """The same of TIMIT's .phn, whose times are samples at `rate` Hz."""
    return _parsed(Path(path), "start end phone", lambda start, end, phone: (phone, int(start) / rate, int(end) / rate))


def fit_alignment(path: Path, tier: str, rate: int, seconds: float) -> Segments:
    """What `read_alignment` or `read_phn` reads, of a sound of that rate and length; a last end just behind it is cut.

    UserError, too, for an alignment that reaches further beyond its sound.
    """
    segments = read_phn(path, rate) if path.suffix.lower() == ".phn" else read_alignment(path, tier)
    _, start, end = segments[-1]
    if end > seconds + TOLERANCE or start >= seconds:
        raise UserError(f"{path}: ends at {end:.3f} s, after its sound, which ends at {seconds:.3f} s")
    return [(phone, start, min(end, seconds)) for phone, start, end in segments]


def _parsed(path: Path, layout: str, parse: Callable[..., tuple[str, float, float]]) -> Segments:
    segments = []
    for number, line in text_lines(path):
        if line.strip() and not line.startswith(";;"):
            try:
                segments.append(parse(*line.split()))
            except (TypeError, ValueError):
                raise UserError(f"{path}: line {number} is not `{layout}`: {line[:60]!r}") from None
    return _ordered(path, segments)


def _text_grid(path: Path, tier: str) -> Segments:
    try:
        tiers = textgrid.openTextgrid(str(path), False, reportingMode="silence", duplicateNamesMode="rename").tiers
    except Exception as error:  # praatio's own, and whatever its parser stumbles over
        raise UserError(f"{path}: cannot be read as a TextGrid: {one_line(error)}") from error
    for found in tiers:
        if found.name == tier and isinstance(found, textgrid.IntervalTier):
            return [(label, start, end) for start, end, label in found.entries if label]
    has = ", ".join(found.name for found in tiers) or "none"
    raise UserError(f"{path}: no tier {tier!r} of intervals, which data.tier names; its tiers are {has}")


def _ordered(path: Path, segments: Segments) -> Segments:
    ordered, last = [], 0.0
    for phone, start, end in segments:
        where = f"{path}: {phone!r} from {start:.3f} to {end:.3f} s"
        if not 0 <= start < end:
            raise UserError(f"{where} is negative or lasts no time")
        if start < last - ROUNDING or end <= last:
            raise UserError(f"{where} overlaps what ends at {last:.3f} s")
        if len(phone.split()) != 1:
            raise UserError(f"{where} has a blank in its name")
        ordered.append((phone, max(start, last), end))
        last = end
    if not ordered:
        raise UserError(f"{path}: no phone in it")
    return ordered


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a file in UTF-8; UserError if it is not, or cannot be read."""
    for number, line in enumerate(corpora.lines(path), start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: line {number} is not valid UTF-8; convert the file") from error
