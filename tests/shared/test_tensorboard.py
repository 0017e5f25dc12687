"""What was written is what TensorBoard's own backend finds, also in a run that was resumed."""

import io
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend import application
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin
from tensorboard.plugins.image.images_plugin import ImagesPlugin
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
from tensorboard.plugins.text.text_plugin import TextPlugin
from werkzeug.test import Client

from shared.tensorboard import EventWriter, write_projector

RUN = "quickstart/tensorboard"
SESSIONS = {"allowedStatuses": ["STATUS_UNKNOWN", "STATUS_RUNNING"], "colParams": [], "startIndex": 0, "sliceSize": 9}


@dataclass(frozen=True)
class TrainingConfig:
    rate: float = 0.5
    rounds: int = 3
    deterministic: bool = True
    optimizer: str = "adam"
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    training: TrainingConfig = field(default_factory=TrainingConfig)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / RUN


@pytest.fixture
def get(tmp_path):
    """(path below data/plugin, query) -> what TensorBoard answers its page."""

    def answer(path, body=None, **query):
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
        multiplexer.Reload()
        provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
        context = base_plugin.TBContext(data_provider=provider, logdir=str(tmp_path))
        plugins = (HParamsPlugin, ImagesPlugin, ProjectorPlugin, ScalarsPlugin, TextPlugin)
        client = Client(application.TensorBoardWSGI([plugin(context) for plugin in plugins]))
        path = f"/data/plugin/{path}"
        response = client.get(path, query_string=query) if body is None else client.post(path, json=body)
        assert response.status_code == 200, response.data
        return json.loads(response.data) if response.mimetype == "application/json" else response.data

    return answer


def test_scalars_are_found_before_the_writer_is_closed(folder, get):
    writer = EventWriter(folder)
    writer.scalars(7, {"loss": 2.5, "valid_bleu": np.float32(31.5), "rounds": 3, "valid_bleu_signature": "tok:13a"})
    assert set(get("scalars/tags")[RUN]) == {"loss", "valid_bleu", "rounds"}
    assert [point[1:] for point in get("scalars/scalars", run=RUN, tag="valid_bleu")] == [[7, 31.5]]


def test_a_resumed_run_goes_on_in_the_same_folder(folder, get):
    for steps in ((1, 2), (2, 3)):
        writer = EventWriter(folder)
        writer.hyperparameters(Config())
        for step in steps:
            writer.scalars(step, {"loss": 1 / step})
        writer.close()
    assert [step for _, step, _ in get("scalars/scalars", run=RUN, tag="loss")] == [1, 2, 2, 3]
    groups = get("hparams/session_groups", SESSIONS)["sessionGroups"]
    assert [len(group["sessions"]) for group in groups] == [1]


def test_hyperparameters_are_found_beside_the_scores(folder, get):
    writer = EventWriter(folder)
    writer.hyperparameters(Config(TrainingConfig(rate=0.25, names=["a"])))
    writer.scalars(1, {"valid_bleu": 20.0})
    (group,) = get("hparams/session_groups", SESSIONS)["sessionGroups"]
    assert group["hparams"] == {
        "training.rate": 0.25,
        "training.rounds": 3,
        "training.deterministic": True,
        "training.optimizer": "adam",
    }
    metrics = [metric["name"]["tag"] for metric in get("hparams/experiment", {})["metricInfos"]]
    assert metrics == ["valid_bleu"]


def test_texts_are_rendered_and_made_harmless(folder, get):
    EventWriter(folder).texts(3, {"samples": "| source |\n| --- |\n| *ein* <script>alert(1)</script> |"})
    (event,) = get("text/text", run=RUN, tag="samples")
    assert event["step"] == 3
    assert "<td><em>ein</em>" in event["text"]
    assert "<script>" not in event["text"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_come_back_pixel_by_pixel(folder, get, channels):
    picture = np.random.default_rng(1).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    EventWriter(folder).images(2, {"attention/0": picture})
    (entry,) = get("images/images", run=RUN, tag="attention/0", sample="0")
    image = Image.open(io.BytesIO(get("images/individualImage", blob_key=entry["query"].partition("=")[2])))
    assert entry["step"] == 2
    np.testing.assert_array_equal(np.asarray(image).reshape(picture.shape), picture)


def test_images_of_another_type_are_refused(folder):
    with pytest.raises(ValueError, match="attention"):
        EventWriter(folder).images(1, {"attention": np.ones((2, 2, 3), np.float32)})


@pytest.mark.parametrize("first", [0.0, 1.0, -3e-20, np.frombuffer(b"a\na\n", "<f4")[0]])
def test_projector_finds_matrices_with_their_tokens(folder, get, first):
    EventWriter(folder).scalars(1, {"loss": 1.0})
    matrix = np.zeros((6, 2))
    matrix[0, 0] = first
    write_projector(folder, "source", np.ones((1, 3)), ["replaced"])
    write_projector(folder, "target/embedding", np.arange(6.0).reshape(2, 3), ["a", "b"])
    write_projector(folder, "source", matrix, ["a\tb", "c\nd", "", " ", "\u2028", "▁größer"])
    assert get("projector/runs") == [RUN]
    shapes = {info["tensorName"]: info["tensorShape"] for info in get("projector/info", run=RUN)["embeddings"]}
    assert shapes == {"source": [6, 2], "target/embedding": [2, 3]}
    found = np.frombuffer(get("projector/tensor", run=RUN, name="source"), "<f4")
    np.testing.assert_allclose(found.reshape(6, 2), matrix, rtol=1e-4, atol=1e-40)
    labels = get("projector/metadata", run=RUN, name="source").decode().split("\n")
    assert labels == ["a\\tb", "c\\nd", "''", "' '", "\\u2028", "▁größer", ""]


def test_projector_needs_a_token_for_each_row(folder):
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        write_projector(folder, "source", np.ones((3, 2)), ["a", "b"])
    assert not folder.exists()
