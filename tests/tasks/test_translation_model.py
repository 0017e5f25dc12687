"""The translator: steps are teacher forcing, padding and later words change nothing, no weight is left unsaved."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tasks.translation.config import ModelConfig
from tasks.translation.model import Translator

CELLS, ATTENTIONS = ["simple", "lstm", "gru"], ["additive", "dot", "none"]
SMALL = {"embedding_units": 4, "encoder_units": 3, "decoder_units": 5, "attention_units": 3}
IDS = 9
SOURCE = np.array([[5, 6, 7, 4, 2], [8, 3, 2, 0, 0], [2, 0, 0, 0, 0]], "int32")
TARGET = np.array([[1, 4, 5, 8], [1, 7, 7, 3], [1, 3, 4, 6]], "int32")

# Every choice there is, but not every combination.
VARIANTS = {
    "simple": {"cell": "simple", "attention": "dot"},
    "lstm": {"cell": "lstm", "attention": "none", "tie_embeddings": False},
    "gru": {"cell": "gru", "attention": "additive"},
    "forward": {"cell": "lstm", "bidirectional": False, "encoder_layers": 2, "decoder_layers": 3, "residual": True},
    "deep": {"cell": "gru", "attention": "dot", "encoder_layers": 2, "decoder_layers": 3, "dropout_layers": 0.5},
    "fed": {"cell": "lstm", "attention": "additive", "input_feeding": True, "decoder_layers": 3},
    "normalised": {"cell": "layer_norm_lstm", "attention": "additive"},
    "shallow": {"cell": "gru", "attention": "none", "decoder_layers": 1, "dropout_output": 0.5},
}
OTHERS = ["forward", "fed", "normalised", "shallow"]
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def untrained(seed=3, joint=True, **options):
    keras.utils.set_random_seed(seed)
    model = Translator(ModelConfig(**SMALL, **options), IDS if joint else IDS + 4, IDS, joint)
    model.build()
    return model


@functools.cache
def make(**options):
    """A translator whose weights, biases too, are random and large enough to matter."""
    model = untrained(**options)
    random = np.random.default_rng(7)
    model.set_weights([0.6 * random.normal(size=weight.shape) for weight in model.weights])
    return model


def logits(model, source=SOURCE, target=TARGET):
    return model({"source": source, "target": target}, training=False).numpy()


def log_softmax(scores):
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_steps_are_teacher_forcing(cell, attention, tie_embeddings):
    check_steps(make(cell=cell, attention=attention, tie_embeddings=tie_embeddings))


@pytest.mark.parametrize("options", [VARIANTS[name] for name in OTHERS], ids=OTHERS)
def test_steps_of_other_models_are_teacher_forcing(options):
    check_steps(make(**options))


def check_steps(model):
    expected = log_softmax(logits(model))
    state, step = model.start(SOURCE)
    for t in range(TARGET.shape[1]):
        found, state = step(TARGET[:, t], state)
        np.testing.assert_allclose(found, expected[:, t], atol=2e-6)
        if "attention" in state:
            weights = state["attention"].numpy()
            np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
            assert np.all(weights[SOURCE == 0] == 0)
    assert ("attention" in state) == (model.writer.decoder.attention is not None)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_copies_of_a_sentence_lie_next_to_each_other(attention):
    model = make(cell="gru", attention=attention)
    expected = log_softmax(logits(model))
    state, step = model.start(SOURCE, copies=2)
    state = keras.tree.map_structure(lambda tensor: np.repeat(tensor, 2, axis=0), state)
    for t in range(2):
        found, state = step(np.repeat(TARGET[:, t], 2), state)
        np.testing.assert_allclose(found, np.repeat(expected[:, t], 2, axis=0), atol=2e-6)


@variants
def test_padding_of_the_source_changes_nothing(options):
    model = make(**options)
    whole = logits(model)
    for row, length in ((1, 3), (2, 1)):
        alone = logits(model, SOURCE[row : row + 1, :length], TARGET[row : row + 1])
        np.testing.assert_allclose(whole[row : row + 1], alone, atol=2e-6)


@variants
def test_no_word_sees_what_comes_later(options):
    """Padding of the target comes later, too."""
    model = make(**options)
    targets = np.pad(np.repeat(TARGET[:1], 4, axis=0), [(0, 0), (0, 3)])
    for row in (1, 2, 3):  # row 0 stays as it is, the others differ from their own word on
        targets[row, row:4] = (targets[row, row:4] + 1) % IDS
    found = logits(model, np.repeat(SOURCE[:1], 4, axis=0), targets)
    np.testing.assert_allclose(found[0, :4], logits(model, SOURCE[:1], TARGET[:1])[0], atol=2e-6)
    for row in (1, 2, 3):
        np.testing.assert_allclose(found[row, :row], found[0, :row], atol=1e-6)
        assert np.abs(found[row, row] - found[0, row]).max() > 1e-4


@variants
def test_every_word_of_the_source_matters(options):
    sources = np.repeat(SOURCE[:1], 6, axis=0)
    sources[np.arange(5), np.arange(5)] = 3
    found = logits(make(**options), sources, np.repeat(TARGET[:1], 6, axis=0))
    assert np.all(np.abs(found[:5] - found[5]).max(axis=(1, 2)) > 1e-5)


@pytest.mark.parametrize("options", [VARIANTS["lstm"], VARIANTS["gru"]], ids=["lstm", "gru"])
def test_the_decoder_starts_where_both_directions_ended(options):
    model = make(**options)
    state, memory, mask = model.encode(SOURCE)
    np.testing.assert_array_equal(mask, SOURCE != 0)
    memory, last = memory.numpy(), np.sum(SOURCE != 0, axis=1) - 1
    ends = np.concatenate([memory[np.arange(3), last, :3], memory[:, 0, 3:]], axis=-1)
    for layer, bridge in zip(state["recurrent"], model.writer.bridge, strict=True):
        kernel, bias = bridge[0].get_weights()
        np.testing.assert_allclose(layer[0], np.tanh(ends @ kernel + bias), atol=1e-6)
        assert len(layer) == len(bridge) == (2 if options["cell"] == "lstm" else 1)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_only_attention_looks_into_the_memory(attention):
    model = make(cell="lstm", attention=attention)
    state, memory, mask = model.encode(SOURCE)
    embedded = model.writer.embedding(TARGET)
    outputs = [
        model.writer.decoder(embedded, state["recurrent"], tensor, mask)[0].numpy() for tensor in (memory, -memory)
    ]
    assert np.array_equal(*outputs) == (attention == "none")


@variants
def test_every_weight_learns(options):
    model = make(**options)
    with tf.GradientTape() as tape:
        scores = model({"source": SOURCE, "target": TARGET}, training=False)
        loss = -tf.reduce_sum(tf.nn.log_softmax(scores)[..., 3])
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    norms = {
        weight.path: 0.0 if gradient is None else float(tf.norm(tf.convert_to_tensor(gradient)))
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True)
    }
    assert {path for path, norm in norms.items() if norm < 1e-5} == set()


@variants
def test_build_creates_every_weight_and_a_file_holds_them_all(options, tmp_path):
    model = make(**options)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = untrained(seed=2, **options)
    created = [weight.path for weight in fresh.variables]
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(logits(fresh), logits(model))
    assert [weight.path for weight in fresh.variables] == created


def test_the_seed_decides_the_first_weights():
    first, again, other = untrained(seed=1), untrained(seed=1), untrained(seed=2)
    for a, b in zip(first.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(logits(first) - logits(other)).max() > 1e-3


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("joint", [True, False])
def test_embeddings_are_tied_where_asked(joint, tied):
    model = untrained(joint=joint, tie_embeddings=tied)
    assert (model.source_embedding is model.writer.embedding) == (joint and tied)
    tables = [weight for weight in model.trainable_weights if weight.shape in [(IDS, 4), (IDS + 4, 4)]]
    assert len(tables) == (1 if joint and tied else 2 if tied else 3)
    before = logits(model)
    row = np.zeros((IDS, 4))
    row[2] = 1  # eos, which no decoder reads: where only its embedding moves, no logit does
    model.writer.embedding.embeddings.assign_add(row)
    moved = np.abs(logits(model) - before)[..., 2].max() > 1e-3
    assert moved == tied


@pytest.mark.parametrize("name", ["embedding", "memory", "output", "layers"])
def test_each_dropout_acts_in_training_only(name):
    model = untrained(cell="gru", encoder_layers=2, **{f"dropout_{name}": 0.5})
    plain = untrained(cell="gru", encoder_layers=2)
    plain.set_weights(model.get_weights())
    np.testing.assert_array_equal(logits(model), logits(plain))
    inputs = {"source": SOURCE, "target": TARGET}
    first, second = model(inputs, training=True), model(inputs, training=True)
    assert np.abs(first - second).max() > 1e-4
    np.testing.assert_array_equal(plain(inputs, training=True), logits(plain))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_half_precision_ends_in_float32(attention):
    exact = make(cell="lstm", attention=attention)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = untrained(cell="lstm", attention=attention)
    finally:
        keras.config.set_dtype_policy("float32")
    model.set_weights(exact.get_weights())
    scores = model({"source": SOURCE, "target": TARGET})
    assert scores.dtype == tf.float32 and {weight.dtype for weight in model.trainable_weights} == {"float32"}
    np.testing.assert_allclose(scores, logits(exact), atol=0.1)
    state, step = model.start(SOURCE)
    for t in range(2):
        found, state = step(TARGET[:, t], state)
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, log_softmax(scores.numpy())[:, t], atol=0.1)
