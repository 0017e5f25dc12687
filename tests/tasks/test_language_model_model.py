"""The language model: windows with carried state are one unroll, steps are teacher forcing, padding changes nothing,
a gap does not see its word, and what belongs to training alone acts in training alone."""

import functools
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared import checkpoints
from shared.losses import OwnLoss
from shared.recurrent import CELLS
from shared.text import BOS, EOS
from tasks.language_model.config import DataConfig, LanguageModelConfig, ModelConfig
from tasks.language_model.model import LanguageModel, loss

SMALL = {"embedding_units": 4, "units": 5}
IDS, STREAMS = 11, 3
# Texts of ten ids, each begun by eos.
TEXTS = np.random.default_rng(2).integers(2, IDS, (STREAMS, 10)).astype("int32")
TEXTS[:, 0] = EOS

# Every choice there is, but not every combination.
VARIANTS = {
    "simple": {"cell": "simple", "layers": 1},
    "relu": {"cell": "relu", "layers": 2, "tie_embeddings": False},
    "lstm": {"cell": "lstm", "layers": 2},
    "gru": {"cell": "gru", "layers": 3, "tie_embeddings": False, "residual": True},
    "layer norm": {"cell": "layer_norm_lstm", "layers": 2, "zoneout": 0.2, "truncate": 2},
}
SIDES = {
    "one layer": {"cell": "gru", "layers": 1, "bidirectional": True},
    "two layers": {"cell": "lstm", "layers": 2, "bidirectional": True, "tie_embeddings": False},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
every = pytest.mark.parametrize("options", [*VARIANTS.values(), *SIDES.values()], ids=[*VARIANTS, *SIDES])
sides = pytest.mark.parametrize("options", SIDES.values(), ids=SIDES)


def untrained(seed=3, streams=STREAMS, size=IDS, label_smoothing=0.0, **options):
    keras.utils.set_random_seed(seed)
    model = LanguageModel(ModelConfig(**(SMALL | options)), size, streams, label_smoothing)
    model.build()
    return model


def make(streams=STREAMS, **options):
    """A model whose weights, biases too, are random and large enough to matter; nothing was read yet."""
    model = untrained(streams=streams, **options)
    random = np.random.default_rng(7)
    for weight in model.trainable_weights:
        weight.assign(0.6 * random.normal(size=weight.shape))
    return model


def inputs_of(texts, begins=False):
    """A window: all but the last ids, and all but the first as their targets."""
    texts = np.asarray(texts, "int32")
    return {"tokens": texts[:, :-1], "targets": texts[:, 1:], "begins": np.broadcast_to(begins, len(texts))}


def losses(model, texts, begins=False, **options):
    return model(inputs_of(texts, begins), **options).numpy()


def log_softmax(scores):
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def log_probs(model, texts):
    """Of all words at every place but the first, (batch, time, ids)."""
    inputs = inputs_of(texts)
    outputs, _ = model.read(inputs["tokens"], inputs["targets"])
    return log_softmax(model.logits(outputs).numpy())


def at_targets(values, texts):
    return np.take_along_axis(values, np.asarray(texts)[:, 1:, None], axis=-1)[..., 0]


# ------------------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("tied", [True, False])
def test_probabilities_are_those_of_the_formula(tied):
    model = make(cell="simple", layers=1, tie_embeddings=tied)
    E, (U, W, b) = model.embedding.embeddings.numpy(), model.stack.get_weights()
    V = E if tied else model.output_kernel.embeddings.numpy()
    state, expected = np.zeros((STREAMS, W.shape[0])), []
    for t in range(TEXTS.shape[1] - 1):
        state = np.tanh(E[TEXTS[:, t]] @ U + state @ W + b)
        expected.append(log_softmax(state @ V.T + model.output_bias.numpy()))
    np.testing.assert_allclose(log_probs(model, TEXTS), np.stack(expected, axis=1), atol=2e-5)


@every
def test_losses_are_those_of_the_probabilities(options):
    model = make(**options)
    np.testing.assert_allclose(losses(model, TEXTS, True), -at_targets(log_probs(model, TEXTS), TEXTS), atol=2e-6)


@sides
def test_a_gap_is_read_from_both_sides(options):
    model, texts = make(**options), TEXTS[:1]
    left = model.stack(model.embedding(texts[:, :-1]))[0].numpy()
    right = model.backward(model.embedding(texts[:, :0:-1]))[0].numpy()[:, ::-1]
    beyond = np.concatenate([right[:, 1:], np.zeros_like(right[:, :1])], axis=1)  # nothing is right of the last word
    A, a = model.readout.get_weights()
    scores = model.logits(np.concatenate([left, beyond], axis=-1) @ A + a).numpy()
    np.testing.assert_allclose(log_probs(model, texts), log_softmax(scores), atol=2e-5)


# ---------------------------------------------------------------------------------------------------- state and padding


@variants
def test_windows_with_carried_state_are_one_unroll(options):
    model = make(**options)
    whole = losses(model, TEXTS, True)
    windows = [losses(model, TEXTS[:, a : b + 1], a == 0) for a, b in [(0, 3), (3, 4), (4, 9)]]
    np.testing.assert_allclose(np.concatenate(windows, axis=1), whole, atol=2e-6)
    alone = losses(model, TEXTS[:, 3:], True)
    assert np.abs(alone - whole[:, 3:]).max() > 1e-2  # without the state it would not be


@variants
def test_what_begins_is_read_as_by_a_fresh_model(options):
    model = make(**options)
    losses(model, TEXTS[:, :5], True)
    carried = [part.numpy() for part in model.carried]
    found = losses(model, TEXTS[:, 4:], [False, True, False])
    fresh = losses(make(**options), TEXTS[:, 4:])
    np.testing.assert_allclose(found[1], fresh[1], atol=2e-6)
    assert np.abs(found - fresh)[[0, 2]].max(axis=1).min() > 1e-3
    assert all(np.abs(part).max() > 0 for part in carried)


@every
def test_a_row_does_not_see_the_others(options):
    other = TEXTS.copy()
    other[[0, 2]] = other[[2, 0], ::-1]
    first, second = make(**options), make(**options)
    for a, b in [(0, 6), (6, 9)]:
        found, expected = losses(first, TEXTS[:, a : b + 1]), losses(second, other[:, a : b + 1])
        np.testing.assert_allclose(found[1], expected[1], atol=2e-6)
        assert np.abs(found - expected)[[0, 2]].min(axis=1).max() > 1e-3


@every
def test_padding_changes_no_loss(options):
    model, lengths = make(**options), [9, 1, 5]
    real = np.arange(9) < np.array(lengths)[:, None]
    inputs = inputs_of(TEXTS, True)
    # On padding of the targets the tokens may be anything.
    found = model({**inputs, "targets": inputs["targets"] * real}).numpy()
    for row, length in enumerate(lengths):
        alone = losses(make(streams=1, **options), TEXTS[row : row + 1, : length + 1], True)
        np.testing.assert_allclose(found[row, :length], alone[0], atol=2e-6)


@variants
def test_what_is_carried_on_does_not_depend_on_padding(options):
    """Windows of random lengths end at other places in each stream."""
    model, alone = make(**options), [make(streams=1, **options) for _ in range(STREAMS)]
    ends = np.array([[0, 0, 0], [4, 1, 3], [5, 6, 9], [9, 9, 9]])
    for starts, stops in itertools.pairwise(ends):
        tokens, targets = np.zeros((2, STREAMS, max(stops - starts)), "int32")
        for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            tokens[row, : stop - start] = TEXTS[row, start:stop]
            targets[row, : stop - start] = TEXTS[row, start + 1 : stop + 1]
        found = model({"tokens": tokens, "targets": targets, "begins": starts == 0}).numpy()
        for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            if start < stop:
                expected = losses(alone[row], TEXTS[row : row + 1, start : stop + 1], start == 0)
                np.testing.assert_allclose(found[row, : stop - start], expected[0], atol=2e-6)


def test_the_carried_state_is_none_of_the_weights_that_learn():
    model = make(cell="lstm", layers=2)
    assert [tuple(part.shape) for part in model.carried] == [(STREAMS, 5)] * 2 + [(STREAMS, 4)] * 2
    assert not {id(part) for part in model.carried} & {id(weight) for weight in model.trainable_weights}


# ----------------------------------------------------------------------------------------------------------- both sides


@sides
def test_a_word_is_predicted_from_all_the_others_and_not_from_itself(options):
    model, places = make(**options), TEXTS.shape[1] - 1
    texts = np.repeat(TEXTS[:1], places + 1, axis=0)
    texts[np.arange(places), np.arange(places) + 1] = (texts[0, 1:] - 1) % (IDS - 2) + 2  # another word at each place
    assert np.all(texts[np.arange(places), np.arange(places) + 1] != texts[-1, 1:])
    found = log_probs(model, texts)
    moved = np.abs(found[:-1] - found[-1]).max(axis=-1)  # (place that was changed, place that is predicted)
    assert np.all(np.diag(moved) < 1e-6)
    # What lies eight places off moves but little.
    assert np.all(moved[~np.eye(places, dtype=bool)] > 1e-6)


@sides
def test_both_sides_of_a_row_end_where_the_row_ends(options):
    model = make(**options)
    texts = np.concatenate([TEXTS, np.zeros((STREAMS, 4), "int32")], axis=1)
    np.testing.assert_allclose(log_probs(model, texts)[:, :9], log_probs(model, TEXTS), atol=2e-6)


# ------------------------------------------------------------------------------------------------------------- stepping


@variants
def test_steps_are_teacher_forcing_after_prompts_of_any_length(options):
    model = make(**options)
    prompts = np.array([[EOS, 4, 7, 5, 0], [EOS, 0, 0, 0, 0], [EOS, 9, 0, 0, 0]], "int32")
    following = np.array([[3, 8, 6], [10, 4, 4], [5, 2, 7]], "int32")
    state, step = model.start(prompts)
    found = []
    for tokens in (np.full(3, BOS, "int32"), *following.T):
        scores, state = step(tokens, state)
        assert scores.dtype == tf.float32 and scores.shape == (3, IDS)
        found.append(scores.numpy())
    for row, prompt in enumerate(prompts):
        text = np.concatenate([prompt[prompt > 0], following[row], [EOS]])[None]
        np.testing.assert_allclose(np.stack(found, axis=1)[row], log_probs(model, text)[0, -4:], atol=5e-6)


@variants
def test_padding_of_a_prompt_changes_nothing(options):
    model = make(**options)
    short, long = (np.array([row + [0] * width for row in ([EOS, 4], [EOS, 0])], "int32") for width in (0, 3))
    for prompts in (short, long):
        state, step = model.start(prompts)
        scores, state = step(np.full(2, BOS, "int32"), state)
        found = [scores, *keras.tree.flatten(state["recurrent"])]
        if prompts is short:
            expected = found
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_a_text_begins_after_an_end_of_line():
    model = make(cell="gru", layers=2)
    state, step = model.start_of_text(2)
    scores, state = step(np.full(2, BOS, "int32"), state)
    expected = log_probs(model, np.array([[EOS, 5, 4]] * 2))
    np.testing.assert_allclose(scores, expected[:, 0], atol=2e-6)
    np.testing.assert_allclose(step(np.full(2, 5, "int32"), state)[0], expected[:, 1], atol=2e-6)


# ------------------------------------------------------------------------------------------------- weights, checkpoints


@every
def test_every_weight_learns(options):
    model = make(**options)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(model(inputs_of(TEXTS, True)))
    gradients = tape.gradient(value, [weight.value for weight in model.trainable_weights])
    norms = {
        weight.path: 0.0 if gradient is None else float(tf.norm(tf.convert_to_tensor(gradient)))
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True)
    }
    assert {path for path, norm in norms.items() if norm < 1e-5} == set()


@every
def test_build_creates_every_weight_and_a_file_holds_them_all(options, tmp_path):
    model = make(**options)
    losses(model, TEXTS)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = untrained(seed=2, **options)
    created = [weight.path for weight in fresh.variables]
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(losses(fresh, TEXTS), losses(model, TEXTS))
    assert [weight.path for weight in fresh.variables] == created


def test_a_checkpoint_holds_what_comes_next(tmp_path):
    """State and random numbers: the next window, dropped and sampled, is the same after a restart."""
    options = {
        "cell": "lstm", "weight_drop": 0.4, "zoneout": 0.3, "dropout_words": 0.3, "dropout_embedding": 0.3,
        "dropout_layers": 0.3, "dropout_output": 0.3, "samples": 6,
    }  # fmt: skip

    def compiled(seed):
        model = untrained(seed=seed, **options)
        model.compile(optimizer="adam", loss=OwnLoss())
        model.optimizer.build(model.trainable_variables)
        return model

    model = compiled(1)
    for a in (0, 4):
        losses(model, TEXTS[:, a : a + 5], a == 0, training=True)
    checkpoints.save_round(tmp_path, model, checkpoints.Progress(round=1))
    expected = [losses(model, TEXTS, training=True) for _ in range(2)]
    restored = compiled(2)
    assert checkpoints.restore_round(tmp_path, restored).round == 1
    np.testing.assert_array_equal([losses(restored, TEXTS, training=True) for _ in range(2)], expected)
    checkpoints.restore_round(tmp_path, restored)
    other = losses(restored, TEXTS, True, training=True)  # the same masks after another state
    assert np.abs(other - expected[0]).max() > 1e-4 and np.abs(expected[1] - expected[0]).max() > 1e-4


def test_the_seed_decides_the_first_weights():
    first, again, other = untrained(seed=1), untrained(seed=1), untrained(seed=2)
    for a, b in zip(first.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(log_probs(first, TEXTS) - log_probs(other, TEXTS)).max() > 1e-4


@every
def test_output_and_embedding_are_one_matrix_where_tied(options):
    model = make(**options)
    tied = options.get("tie_embeddings", True)
    assert len([weight for weight in model.trainable_weights if weight.shape[0] == IDS and len(weight.shape) == 2]) == (
        1 if tied else 2
    )
    texts = np.where(
        TEXTS == 10, 9, TEXTS
    )  # no text reads 10: where only its embedding moves, its probability does not
    before = log_probs(model, texts)
    row = np.zeros((IDS, 4))
    row[10] = 1
    model.embedding.embeddings.assign_add(row)
    assert (np.abs(log_probs(model, texts) - before)[..., 10].max() > 1e-3) == tied


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_half_precision_ends_in_float32(cell, bidirectional):
    options = {"cell": cell, "bidirectional": bidirectional, "samples": 5, "weight_drop": 0.2, "dropout_words": 0.2}
    exact = make(**options)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make(**options, activation_penalty=1.0, change_penalty=1.0)
    finally:
        keras.config.set_dtype_policy("float32")
    for first, second in ((0, 5), (4, 10)):
        found, expected = (each(inputs_of(TEXTS[:, first:second], first == 0)) for each in (model, exact))
        assert found.dtype == tf.float32
        np.testing.assert_allclose(
            found, expected, rtol=0.05, atol=0.15
        )  # as coarse as a processor without bfloat16 rounds
    assert {variable.dtype for variable in (*model.trainable_weights, *model.carried)} == {"float32"}
    trained = model(inputs_of(TEXTS), training=True)
    assert trained.dtype == tf.float32 and np.all(np.isfinite(trained))
    assert [penalty.dtype for penalty in model.losses] == [tf.float32] * 2
    if not bidirectional:
        state, step = model.start(TEXTS[:, :3])
        for tokens in (np.full(STREAMS, BOS, "int32"), TEXTS[:, 3]):
            scores, state = step(tokens, state)
            assert scores.dtype == tf.float32


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "name", ["dropout_words", "dropout_embedding", "dropout_layers", "dropout_output", "weight_drop"]
)
def test_each_dropout_acts_in_training_only(name):
    model, plain = make(cell="gru", **{name: 0.5}), make(cell="gru")
    for training in (False, None):
        np.testing.assert_array_equal(losses(model, TEXTS, True, training=training), losses(plain, TEXTS, True))
    first, second = (losses(model, TEXTS, True, training=True) for _ in range(2))
    assert np.abs(first - second).max() > 1e-4
    np.testing.assert_array_equal(losses(plain, TEXTS, True, training=True), losses(plain, TEXTS, True))


def dropped(model, tokens):
    """(batch, time, units): what of the embedding is left, 1 where all of it."""
    return np.array(model.embed(tokens, training=True)) / model.embedding(tokens).numpy()


def test_words_are_dropped_wherever_they_stand():
    model, tokens = make(size=101, dropout_words=0.5), np.random.default_rng(1).integers(0, 101, (8, 60))
    first, second = dropped(model, tokens), dropped(model, tokens)
    for kept in (first, second):
        assert np.all(np.isclose(kept, 0) | np.isclose(kept, 2))
        share = {word: np.unique(kept[tokens == word].round()).tolist() for word in np.unique(tokens)}
        assert all(len(values) == 1 for values in share.values())
        assert 0.3 < np.mean([values == [2.0] for values in share.values()]) < 0.7
    assert np.any(np.abs(first - second) > 1)


def test_places_of_the_embedding_are_dropped_for_a_whole_window():
    model = make(dropout_embedding=0.5)
    kept = dropped(model, np.tile(TEXTS, (10, 1)))
    np.testing.assert_allclose(kept, np.repeat(kept[:, :1], kept.shape[1], axis=1), atol=1e-5)
    assert 0.3 < np.mean(kept > 1) < 0.7 and len(np.unique(kept[:, 0].round(), axis=0)) > 3


@pytest.mark.parametrize("bidirectional", [False, True])
def test_places_of_the_output_are_dropped_for_a_whole_window(bidirectional):
    model = make(cell="simple", dropout_output=0.5, bidirectional=bidirectional)
    inputs = inputs_of(TEXTS)
    whole, found = (model.read(inputs["tokens"], inputs["targets"], training=training)[0] for training in (False, True))
    kept = found.numpy() / whole.numpy()
    np.testing.assert_allclose(kept, np.repeat(kept[:, :1], kept.shape[1], axis=1), atol=1e-3)
    assert set(np.unique(kept.round(2))) == {0.0, 2.0}


def test_recurrent_weights_are_dropped_and_come_back():
    model = make(cell="lstm", weight_drop=0.5)
    before = [weight.numpy() for weight in model.trainable_weights]
    assert np.abs(losses(model, TEXTS, True, training=True) - losses(model, TEXTS, True)).max() > 1e-3
    for weight, value in zip(model.trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.parametrize("cell", CELLS)
def test_zoneout_is_drawn_in_training_and_its_expectation_read(cell):
    model, plain = make(cell=cell, zoneout=0.4), make(cell=cell)
    whole = losses(model, TEXTS, True)
    np.testing.assert_array_equal(losses(model, TEXTS, True, training=False), whole)
    first, second = (losses(model, TEXTS, True, training=True) for _ in range(2))
    for other in (second, whole, losses(plain, TEXTS, True)):
        assert np.abs(first - other).max() > 1e-4
    state, step = model.start(TEXTS[:, :1])
    for t, tokens in enumerate([np.full(STREAMS, BOS, "int32"), *TEXTS.T[1:-1]]):
        scores, state = step(tokens, state)
        np.testing.assert_allclose(-scores.numpy()[range(STREAMS), TEXTS[:, t + 1]], whole[:, t], atol=2e-5)


def test_gradients_are_cut_inside_a_window_where_asked():
    """The window before the last block has no part in the gradient of what the last step adds to the loss."""
    model, plain = (make(cell="gru", tie_embeddings=False, truncate=steps) for steps in (3, 0))
    reached = []
    for each in (model, plain):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(each(inputs_of(TEXTS[:, :6], True))[:, 4])
        gradient = tf.convert_to_tensor(tape.gradient(loss, each.embedding.embeddings.value))
        reached.append(set(np.flatnonzero(np.any(gradient, axis=1))))
    np.testing.assert_allclose(losses(model, TEXTS, True), losses(plain, TEXTS, True), rtol=1e-5)
    assert reached == [set(TEXTS[:, 3:5].flatten()), set(TEXTS[:, :5].flatten())]


def test_smoothing_acts_in_training_only():
    model, plain = make(label_smoothing=0.1), make()
    inputs = inputs_of(TEXTS, True)
    expected = losses(plain, TEXTS, True)
    np.testing.assert_array_equal(losses(model, TEXTS, True, training=False), expected)
    spread = -log_probs(plain, TEXTS).mean(axis=-1)
    np.testing.assert_allclose(model(inputs, training=True), 0.9 * expected + 0.1 * spread, atol=5e-6)


def outputs_of(model, texts):
    inputs = inputs_of(texts)
    return model.read(inputs["tokens"], inputs["targets"])[0].numpy()


@pytest.mark.parametrize("options", [VARIANTS["lstm"], SIDES["one layer"]], ids=["forward", "both sides"])
def test_penalties_are_means_of_squares(options):
    model = make(**options, activation_penalty=2.0, change_penalty=3.0)
    outputs = outputs_of(model, TEXTS)
    expected = [2 * np.mean(outputs**2), 3 * np.mean(np.diff(outputs, axis=1) ** 2)]
    for _ in range(2):  # those of the last call alone
        losses(model, TEXTS, True, training=True)
        np.testing.assert_allclose(model.losses, expected, rtol=1e-5)
    losses(model, TEXTS, True, training=False)
    assert model.losses == [] or np.all(np.array(model.losses) == 0)


def test_activity_is_penalised_behind_the_dropout_and_change_before_it():
    """Merity, McCann & Socher 2017, section 4."""
    inputs, values = inputs_of(TEXTS, True), {}
    for name in ("activation_penalty", "change_penalty"):
        for rate in (0.0, 0.5):
            model = make(cell="lstm", dropout_output=rate, **{name: 1.0})
            model(inputs, training=True)
            values[name, rate] = float(*model.losses)
    assert values["change_penalty", 0.5] == pytest.approx(values["change_penalty", 0.0], rel=1e-6)
    assert values["activation_penalty", 0.5] != pytest.approx(values["activation_penalty", 0.0], rel=1e-2)


def test_a_window_of_one_step_has_no_change():
    model = make(change_penalty=1.0)
    losses(model, TEXTS[:, :2], True, training=True)
    assert [float(value) for value in model.losses] == [0.0]


def test_padding_is_not_penalised():
    model = make(cell="lstm", activation_penalty=1.0, change_penalty=1.0)
    expected = []
    for part in (TEXTS[:, :4], np.concatenate([TEXTS[:, :4], np.zeros((STREAMS, 6), "int32")], axis=1)):
        losses(model, part, True, training=True)
        expected.append([float(value) for value in model.losses])
    assert expected[1] == pytest.approx(expected[0], rel=1e-5)


# ------------------------------------------------------------------------------------------------------- sampled output


@functools.cache
def sampling(samples):
    """A model that samples, outputs to be scored (2, 3, units), their targets, and the losses over all words."""
    model = make(cell="gru", samples=samples)
    outputs = np.random.default_rng(5).normal(size=(2, 3, 4)).astype("float32")
    targets = np.array([[4, 5, 3], [2, 7, 10]], "int32")
    values = log_softmax(model.logits(outputs).numpy())
    return model, outputs, targets, -np.take_along_axis(values, targets[..., None], axis=-1)[..., 0]


def test_many_samples_stand_for_all_words():
    model, outputs, targets, expected = sampling(200_000)
    np.testing.assert_allclose(model.sampled_cross_entropy(outputs, targets), expected, atol=0.03)


def test_few_samples_are_right_in_the_mean():
    """What the samples estimate without bias is the softmax's divisor: exp(loss) is that over exp(score)."""
    model, outputs, targets, expected = sampling(8)
    sampled = tf.function(lambda: tf.exp(model.sampled_cross_entropy(outputs, targets)))
    found = np.stack([sampled().numpy() for _ in range(2000)])
    deviation = (found.mean(axis=0) - np.exp(expected)) / (found.std(axis=0) / np.sqrt(len(found)))
    assert np.abs(deviation).max() < 5
    assert found.std(axis=0).min() > 0.05  # it is a sample


def test_the_cost_of_sampling_does_not_grow_with_the_words():
    model = make(size=1009, samples=20, streams=7)
    texts = np.random.default_rng(1).integers(2, 1009, (7, 14))

    def widest(training):
        """Numbers in the largest tensor, forwards and backwards, that has an axis of all words."""

        @tf.function
        def step(tokens, targets, begins):
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(
                    model({"tokens": tokens, "targets": targets, "begins": begins}, training=training)
                )
            return tape.gradient(value, [weight.value for weight in model.trainable_weights])

        graph = step.get_concrete_function(*map(tf.constant, inputs_of(texts).values())).graph
        shapes = [tensor.shape for op in graph.get_operations() for tensor in op.outputs]
        sizes = [shape.num_elements() for shape in shapes if shape.rank and 1009 in shape.as_list()]
        return max(math.inf if size is None else size for size in sizes)  # None: as many as there are places

    assert widest(True) == 1009 * 4  # the embedding itself
    assert widest(False) > 1009 * 4


def test_sampling_is_exact_at_evaluation():
    model, plain = make(samples=4), make()
    for training in (False, None):
        np.testing.assert_array_equal(losses(model, TEXTS, True, training=training), losses(plain, TEXTS, True))
    first, second = (losses(model, TEXTS, True, training=True) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3


# ------------------------------------------------------------------------------------------------------------- the loss


def test_the_loss_is_the_mean_over_real_tokens():
    weights = (np.arange(6) < np.array([[6], [2], [0]])).astype("float32")
    values = np.random.default_rng(1).random((3, 6)).astype("float32")
    expected = np.sum(values * weights) / 8
    np.testing.assert_allclose(loss(LanguageModelConfig())(weights, values, sample_weight=weights), expected, rtol=1e-6)
    config = LanguageModelConfig(data=DataConfig(window=4, random_windows=True))
    scaled = loss(config)(weights, values, sample_weight=weights)
    np.testing.assert_allclose(scaled, expected * (8 / 3) / 4, rtol=1e-6)


@pytest.mark.parametrize("random_windows", [False, True])
def test_windows_of_any_length_are_trained_on(random_windows):
    config = LanguageModelConfig(data=DataConfig(window=5, random_windows=random_windows))

    parts = [(0, 4), (4, 9)]

    def windows():
        for a, b in parts:
            inputs = inputs_of(TEXTS[:, a : b + 1], a == 0)
            yield inputs, inputs["targets"], np.ones((STREAMS, b - a), "float32")

    model, expected = make(cell="gru", activation_penalty=0.01), []
    for a, b in parts:
        share = (b - a) / 5 if random_windows else 1
        value = share * losses(model, TEXTS[:, a : b + 1], a == 0, training=True).mean()
        expected.append(value + float(*model.losses))
    ids, flags = tf.TensorSpec((STREAMS, None), tf.int32), tf.TensorSpec((STREAMS,), tf.bool)
    signature = {"tokens": ids, "targets": ids, "begins": flags}, ids, tf.TensorSpec((STREAMS, None), tf.float32)
    dataset = tf.data.Dataset.from_generator(windows, output_signature=signature).repeat()
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=loss(config), jit_compile=False)
    history = model.fit(dataset, steps_per_epoch=2, shuffle=False, verbose=0).history
    assert history["loss"] == pytest.approx([np.mean(expected)], rel=1e-4)
