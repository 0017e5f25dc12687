"""A training that is killed and started again ends as the one that was left alone: same weights, same metrics."""

import json
import random
import time

import h5py
import numpy as np
import pytest
import soundfile

from tests.commands import finish, pairs_words, start, write_pairs

ROUNDS = 6
WORDS = [
    *(f"training.rounds={ROUNDS}", "training.round_steps=5", "training.learning_rate=0.02", "training.average=0.9"),
    *("model.dropout_output=0.3", "model.dropout_layers=0.3"),
]
TASK_WORDS = {
    "translation": ["training.label_smoothing=0.1", "model.dropout_embedding=0.3", "model.dropout_memory=0.3"],
    # A pass has nine windows, so that rounds begin within passes and passes within rounds.
    "language_model": [
        *("data.corpus=files", "data.batch_size=4", "data.window=8", "data.random_windows=true"),
        *("model.embedding_units=8", "model.units=8", "model.weight_drop=0.3", "model.dropout_words=0.2"),
        *("model.samples=6", "model.activation_penalty=2", "model.change_penalty=1", "training.sample_examples=1"),
        "model.dropout_embedding=0.3",
    ],
    # A pass has seven batches, of recordings and their copies.
    "speech": [
        *("data.corpus=manifest", "data.batch_size=4", "model.units=8", "model.head=both", "model.dropout_input=0.3"),
        *("augment.copies=1", "augment.noise=[5, 20]", "augment.frequency_masks=1", "augment.time_masks=1"),
        "training.sample_examples=1",
    ],
    # A pass has twelve batches, of two pictures each, which are changed anew every time.
    "captioning": [
        *("data.size=24", "data.batch_size=4", "data.captions_per_picture=2", "model.image_size=32"),
        *("model.channels=2", "model.memory_units=8", "model.embedding_units=8", "model.units=8"),
        *("model.attention_units=8", "model.dropout_embedding=0.3", "model.dropout_memory=0.3"),
        *("model.scheduled_sampling=0.2", "augment.contrast=0.1", "augment.brightness=0.1", "decoding.method=greedy"),
        *("decoding.max_length=12", "training.sample_examples=1", "training.optimizer=muon", "augment.flip=true"),
        "augment.flip_words=left right",
    ],
}
COSINE = ["training.warmup_steps=7"]
PLATEAU = ["training.schedule=plateau", "training.plateau_patience=1", "training.patience=3"]
PLATEAU += ["training.accumulate_steps=2"]
# So fast that it soon gets no better, from where on a plain average is taken.
AVERAGED = ["training.average=0", "training.average_patience=1", "training.schedule=constant"]
AVERAGED += ["training.learning_rate=0.3"]


def write_text(folder):
    """A folder of train, valid and test texts: lines of a few letters."""
    folder.mkdir()
    draw = random.Random(1)
    for stem, size in (("train", 60), ("valid", 8), ("test", 8)):
        lines = [" ".join(draw.choices("abcdefghij", k=draw.randint(1, 7))) for _ in range(size)]
        (folder / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def write_sounds(folder):
    """A folder of manifests of short recordings, each of a few notes, "phones" of a fifth of a second."""
    folder.mkdir()
    draw, times = random.Random(1), np.arange(1600) / 8000
    for stem, size in (("train", 14), ("valid", 4), ("test", 4)):
        rows = ["audio,phones,alignment\n"]
        for name in (f"{stem}-{i}" for i in range(size)):
            notes = draw.choices("abc", k=draw.randint(1, 4))
            sound = np.concatenate(
                [0.3 * np.sin(2 * np.pi * (200 + 300 * "abc".index(note)) * times) for note in notes]
            )
            soundfile.write(folder / f"{name}.wav", sound, 8000)
            aligned = (f"{name} 1 {0.2 * i:.1f} 0.2 {note}\n" for i, note in enumerate(notes))
            (folder / f"{name}.ctm").write_text("".join(aligned))
            rows.append(f"{name}.wav,{' '.join(notes)},{name}.ctm\n")
        (folder / f"{stem}.csv").write_text("".join(rows))
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """(task, run directory, overrides) -> the words of its command."""
    folder = tmp_path_factory.mktemp("resume")
    corpora = {
        "translation": pairs_words(write_pairs(folder / "pairs")),
        "language_model": [f"data.dir={write_text(folder / 'text')}", f"data.cache={folder / 'cache'}"],
        "speech": [f"data.dir={write_sounds(folder / 'sounds')}", f"data.cache={folder / 'cache'}"],
        "captioning": [f"data.cache={folder / 'cache'}"],
    }
    config = folder / "killed.yaml"
    config.write_text("# what is killed\n")

    def words(task, directory, words):
        start = ["train", "--config", config, "--run", directory]
        return [*start, *corpora[task], *WORDS, *TASK_WORDS[task], *words]

    return words


def rounds_done(directory):
    try:
        return (directory / "metrics.jsonl").read_text().count("\n")
    except FileNotFoundError:
        return 0


def last_rounds(directory):
    """Round -> its last line of metrics without what depends on the clock."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    clock = ("seconds", "tokens_per_second")
    return {line["round"]: {name: line[name] for name in line if name not in clock} for line in lines}


def arrays(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, node: found.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None)
    return found


def assert_equal_runs(directory, other):
    assert last_rounds(directory) == last_rounds(other)
    names = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (other / "checkpoints").iterdir())
    assert len(names) == 6 and "best.weights.h5" in names
    for name in names:
        first, second = directory / "checkpoints" / name, other / "checkpoints" / name
        if name.endswith(".json"):
            states = [json.loads(path.read_text()) for path in (first, second)]
            assert states[0]["progress"] == states[1]["progress"] and states[0]["random"] == states[1]["random"]
            assert len(states[0]["random"]) >= 4  # one for each dropout
            continue
        mine, theirs = arrays(first), arrays(second)
        assert mine.keys() == theirs.keys() and any(name.startswith("optimizer") for name in mine)
        assert [name for name in mine if not np.array_equal(mine[name], theirs[name])] == []
    for name in ("predictions/test.jsonl", "scores.json"):
        assert (directory / name).read_bytes() == (other / name).read_bytes()


def kill_at(task, words, moment):
    """Starts a training and kills it once `moment()` has come; False if it ended before."""
    training = start(task, *words)
    training.wait_until(moment)
    training.process.kill()
    done = training.finish()
    assert done.code in (-9, 0), done
    return done.code == -9


def after(directory, rounds, seconds=0.0):
    """The moment some seconds after a round that the run has not done yet (round 0: its log) was noted."""
    rounds = max(rounds, rounds_done(directory) + 1) if rounds else 0
    reached = []

    def moment():
        if not reached and rounds_done(directory) >= rounds and (directory / "train.log").exists():
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() >= reached[0] + seconds

    return moment


def writing(directory):
    """The moment in which a checkpoint is half written."""
    return lambda: next((directory / "checkpoints").glob(".*.h5"), None) is not None


def test_five_kills_change_nothing(train, tmp_path):
    task = "translation"
    seed = random.randrange(10**6)
    print(f"moments drawn with seed {seed}")  # shown when the test fails
    draw = random.Random(seed)
    alone, again, killed = (tmp_path / name for name in ("alone", "again", "killed"))
    assert finish(task, *train(task, alone, COSINE)).code == 0  # compiles, once for all, what no process has before
    started = time.monotonic()
    assert finish(task, *train(task, again, COSINE)).code == 0
    whole = time.monotonic() - started
    pace = min(json.loads(line)["seconds"] for line in (alone / "metrics.jsonl").read_text().splitlines())
    moments = [
        lambda: after(killed, 0, draw.uniform(0.1, 0.6) * whole),  # while it loads, or in its first rounds
        lambda: writing(killed),
        lambda: after(killed, 2, draw.uniform(0, 2) * pace),
        lambda: after(killed, 4, draw.uniform(0, 2) * pace),
        lambda: after(killed, ROUNDS, draw.uniform(0, 0.2) * whole),  # in the last round, the evaluation or the report
    ]
    words = train(task, killed, COSINE)
    hits = [kill_at(task, words, moment()) for moment in moments]
    print(f"killed: {hits}")
    assert sum(hits) >= 4
    done = finish(task, *words)
    assert done.code == 0 and "resuming after round" in done.err
    assert_equal_runs(alone, killed)
    assert list(killed.rglob(".*.h5")) == []


@pytest.mark.parametrize(
    ("task", "words"),
    [("translation", PLATEAU), ("language_model", AVERAGED), ("speech", COSINE), ("captioning", COSINE)],
    ids=["plateau and accumulated", "averaged", "speech", "captioning"],
)
def test_two_kills_change_nothing_either(train, tmp_path, task, words):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert finish(task, *train(task, alone, words)).code == 0
    for rounds in (1, 3):
        assert kill_at(task, train(task, killed, words), after(killed, rounds))
    done = finish(task, *train(task, killed, words))
    assert done.code == 0
    assert_equal_runs(alone, killed)
    if words is PLATEAU:
        rates = [line["learning_rate"] for line in last_rounds(killed).values()]
        assert len(set(rates)) > 1  # it was lowered, or the test shows nothing
    if words is AVERAGED:
        assert "the weights are averaged from here on" in (alone / "train.log").read_text()
