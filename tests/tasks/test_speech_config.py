"""The speech configuration: what cannot work is one line that names the key, the value and the remedy."""

import pytest

from shared.config import UserError, load_config
from tasks.speech.config import SpeechConfig
from tests.commands import ROOT

MANIFEST = ["data.corpus=manifest", "data.dir=voices"]
CTC = "model.head=ctc"


@pytest.fixture
def load(tmp_path):
    """Overrides -> configuration."""
    path = tmp_path / "speech.yaml"
    path.write_text("# all by overrides\n")
    return lambda *overrides: load_config(SpeechConfig, path, overrides)


def test_the_defaults_pass_their_own_checks(load):
    assert load() == SpeechConfig()
    assert (load().decoding.method, load().decoding.path) == ("beam", "viterbi")


@pytest.mark.parametrize("path", sorted((ROOT / "configs/speech").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_can_be_read(path):
    assert load_config(SpeechConfig, path)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.corpus=timit", "data.dir=timit", "data.valid_speakers=[fvmh0]", "data.unscored=['sa*']", "data.test="],
        [*MANIFEST, "data.phones=", "data.text=", "data.alignment=", "data.speaker="],
        ["data.corpus=tfds:librispeech/default", CTC, "model.labels=characters"],
        ["features.kind=mfcc", "features.coefficients=40", "features.deltas=2", "features.hop=25"],
        ["features.mels=5", "features.coefficients=13"],
        ["augment.speeds=[0.5, 2]", "augment.noise=[-5, -5]", "augment.copies=2", "augment.gain=0"],
        ["model.bidirectional=false", "model.look_ahead=5"],
        ["model.head=both", "model.labels=characters", "decoding.head=ctc", "model.ctc_weight=1"],
        ["model.head=both", "decoding.head=frames"],
        [CTC, "decoding.head=ctc"],
        ["decoding.overlap_seconds=0", "decoding.window_seconds=0.5", "decoding.noise=[-10.5]"],
        ["decoding.fold=timit39", "decoding.transition_weight=0", "decoding.min_frames=1"],
    ],
)
def test_what_can_work_is_taken(load, overrides):
    assert load(*overrides)


def test_a_mapping_file_is_taken_where_it_is(load, tmp_path):
    path = tmp_path / "fold.tsv"
    with pytest.raises(UserError, match=r"fold\.tsv: no such mapping file"):
        load(f"decoding.fold={path}")
    path.write_text("ix\tih\n")
    assert load(f"decoding.fold={path}").decoding.fold == str(path)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.corpus=timitt"], ["data.corpus: 'timitt'", "tiny_world, timit, manifest, tfds:NAME"]),
        (["data.corpus=tfds:"], ["data.corpus: 'tfds:'"]),
        (["data.corpus=timit"], ["data.dir: missing", "data.corpus=timit"]),
        (["data.corpus=manifest"], ["data.dir: missing", "data.corpus=manifest"]),
        ([*MANIFEST, "data.audio="], ["data.audio: must name"]),
        (["data.on_error=ignore"], ["data.on_error: 'ignore'", "stop, skip"]),
        (["data.size=0"], ["data.size: 0"]),
        (["data.batch_size=0"], ["data.batch_size: 0"]),
        (["data.sort_pool=0"], ["data.sort_pool: 0"]),
        (["data.max_seconds=0"], ["data.max_seconds: 0"]),
        (["data.cache="], ["data.cache: must not be empty"]),
        (["data.train="], ["data.train: must not be empty"]),
        (["data.valid="], ["data.valid: must not be empty"]),
        (["data.unscored=sa*"], ["data.unscored: 'sa*'", "a list"]),
        (["features.kind=lpc"], ["features.kind: 'lpc'", "log_mel, mfcc"]),
        (["features.normalize=all"], ["features.normalize: 'all'", "speaker"]),
        (["features.sample_rate=3999"], ["features.sample_rate: 3999", "at least 4000"]),
        (["features.window=0", "features.hop=0"], ["features.window: 0", "above 0"]),
        (["features.hop=-1"], ["features.hop: -1", "above 0"]),
        (["features.hop=30"], ["features.hop: 30", "features.window=25", "at most that"]),
        (["features.mels=0"], ["features.mels: 0"]),
        (["features.coefficients=0"], ["features.coefficients: 0"]),
        (
            ["features.kind=mfcc", "features.coefficients=41"],
            ["features.coefficients: 41", "features.mels=40", "fewer"],
        ),
        (["features.deltas=3"], ["features.deltas: 3", "at most 2"]),
        (["features.deltas=-1"], ["features.deltas: -1"]),
        (["features.stack=0"], ["features.stack: 0"]),
        (["features.subsample=0"], ["features.subsample: 0"]),
        (["augment.copies=-1"], ["augment.copies: -1"]),
        (["augment.gain=-1"], ["augment.gain: -1"]),
        (["augment.speeds=[]"], ["augment.speeds: []"]),
        (["augment.speeds=[0.4, 1]"], ["augment.speeds: [0.4, 1", "0.5 to 2"]),
        (["augment.speeds=[1, 2.1]"], ["augment.speeds"]),
        (["augment.noise=[10]"], ["augment.noise: [10", "two numbers"]),
        (["augment.noise=[20, 10]"], ["augment.noise: [20", "lowest first"]),
        (["augment.noise=[10, 20]"], ["augment.noise", "augment.copies=1"]),
        (["augment.frequency_masks=-1"], ["augment.frequency_masks: -1"]),
        (["augment.frequency_width=-1"], ["augment.frequency_width: -1"]),
        (["augment.time_masks=-1"], ["augment.time_masks: -1"]),
        (["augment.time_width=-1"], ["augment.time_width: -1"]),
        (["model.cell=rnn"], ["model.cell: 'rnn'", "simple, lstm, gru"]),
        (["model.head=framewise"], ["model.head: 'framewise'", "frames, ctc, both"]),
        (["model.labels=words"], ["model.labels: 'words'", "phones, characters"]),
        (["model.labels=characters"], ["model.labels", "model.head=ctc or both"]),
        (["model.units=0"], ["model.units: 0"]),
        (["model.layers=0"], ["model.layers: 0"]),
        (["model.look_ahead=-1"], ["model.look_ahead: -1"]),
        (["model.look_ahead=2"], ["model.look_ahead: 2", "model.bidirectional=false", "choose 0"]),
        (["model.dropout_input=1"], ["model.dropout_input: 1", "below 1"]),
        (["model.dropout_layers=-0.1"], ["model.dropout_layers: -0.1"]),
        (["model.dropout_output=1"], ["model.dropout_output: 1"]),
        (["model.ctc_weight=1.1"], ["model.ctc_weight: 1.1"]),
        (["training.label_smoothing=0.1"], ["training.label_smoothing", "choose 0"]),
        (["decoding.path=forward"], ["decoding.path: 'forward'", "best, viterbi"]),
        (["decoding.head=both"], ["decoding.head: 'both'"]),
        (["decoding.head=ctc"], ["decoding.head: ctc was not trained", "model.head=frames"]),
        ([CTC, "decoding.head=frames"], ["decoding.head: frames was not trained", "model.head=ctc"]),
        (["decoding.min_frames=0"], ["decoding.min_frames: 0"]),
        (["decoding.transition_weight=-1"], ["decoding.transition_weight: -1"]),
        (["decoding.overlap_seconds=-1"], ["decoding.overlap_seconds: -1"]),
        (["decoding.overlap_seconds=0", "decoding.window_seconds=0"], ["decoding.window_seconds: 0", "above 0"]),
        (["decoding.window_seconds=10"], ["decoding.window_seconds: 10", "above 10"]),
        (["decoding.noise=[10, 20]"], ["decoding.noise: [10", "one ratio"]),
        (["decoding.noise=10"], ["decoding.noise: 10", "a list"]),
        (["decoding.fold=timit48"], ["timit48: no such mapping file"]),
        (["decoding.beam_size=0"], ["decoding.beam_size: 0"]),
    ],
)
def test_what_cannot_work_is_one_line(load, overrides, parts):
    with pytest.raises(UserError) as caught:
        load(*overrides)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message
