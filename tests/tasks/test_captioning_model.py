"""The captioner: steps are teacher forcing, neighbours change nothing, rewards and penalties are their formulas."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.config import TrainingConfig
from shared.losses import OwnLoss
from shared.optimization import build_optimizer
from tasks.captioning.config import ModelConfig
from tasks.captioning.model import Captioner, LookAlikes, regions_inside, straying, unevenness

IDS, ROWS, COLUMNS, CHANNELS = 9, 2, 3, 5
SMALL = {
    **{"image_size": 32, "channels": 2, "memory_units": 6, "embedding_units": 4, "units": 5, "attention_units": 3},
    "train_encoder": False,
}
REGIONS = np.random.default_rng(1).normal(size=(3, ROWS * COLUMNS, CHANNELS)).astype("float16")
PICTURES = np.random.default_rng(2).integers(0, 256, (3, 4, 4, 3)).astype("uint8").repeat(8, axis=1).repeat(8, axis=2)
TARGETS = np.array([[4, 5, 8, 6, 2], [7, 7, 2, 0, 0], [2, 0, 0, 0, 0]], "int32")
REAL = TARGETS != 0

# Every choice there is, but not every combination.
VARIANTS = {
    "simple": {"cell": "simple", "attention": "dot", "gate": "gate"},
    "lstm": {"cell": "lstm", "attention": "none", "layers": 1, "tie_embeddings": False},
    "fed": {"cell": "lstm", "attention": "additive", "feed_summary": True},
    "fed alone": {"cell": "gru", "attention": "none", "feed_summary": True},
    "gru": {"cell": "gru", "attention": "additive"},
    "normalised": {"cell": "layer_norm_lstm", "attention": "additive"},
    "sentinel": {"cell": "lstm", "attention": "additive", "gate": "sentinel", "layers": 3},
    "placed": {"cell": "lstm", "attention": "additive", "coordinates": 2.0, "feed_summary": True},
    "alike": {"cell": "gru", "attention": "additive", "look_alikes": True},
    "dot sentinel": {"cell": "gru", "attention": "dot", "gate": "sentinel"},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def untrained(seed=3, label_smoothing=0.0, reward=None, longest=6, **options):
    keras.utils.set_random_seed(seed)
    config = ModelConfig(**SMALL | options)
    regions = None if config.train_encoder else (ROWS, COLUMNS, CHANNELS)
    model = Captioner(config, IDS, regions, label_smoothing, reward, longest)
    model.build()
    return model


def randomized(model):
    """With all weights, biases too, random and large enough to matter; those of an encoder stay as they were drawn."""
    random = np.random.default_rng(7)
    for layer in (model.projection, model.writer):
        layer.set_weights([0.6 * random.normal(size=weight.shape) for weight in layer.weights])
    return model


@functools.cache
def make(**options):
    return randomized(untrained(**options))


def given(seen=REGIONS, targets=TARGETS):
    return {"seen": seen, "tokens": begun(targets), "targets": targets}


def begun(targets):
    return np.pad(targets, [(0, 0), (1, 0)], constant_values=1)[:, :-1]


def losses(model, seen=REGIONS, targets=TARGETS, training=False):
    return model(given(seen, targets), training=training).numpy()


def log_softmax(scores):
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def log_probs(model, seen=REGIONS, targets=TARGETS):
    """Of all words at each place, (captions, time, words), and the attention there."""
    logits, weights = model.writer.read(begun(targets), *model.see(seen, training=False), training=False)
    return log_softmax(logits.numpy()), weights


# ------------------------------------------------------------------------------------------------------------- reading


def test_the_loss_is_the_cross_entropy_of_every_word():
    found = losses(make(cell="gru"))
    expected = -np.take_along_axis(log_probs(make(cell="gru"))[0], TARGETS[..., None], axis=-1)[..., 0]
    assert found.dtype == np.float32 and found.shape == TARGETS.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_labels_are_smoothed_in_training_alone():
    plain, smooth = untrained(), untrained(label_smoothing=0.3)
    expected = 0.7 * losses(plain) - 0.3 * log_probs(plain)[0].mean(axis=-1)
    np.testing.assert_allclose(losses(smooth, training=True), expected, rtol=1e-5)
    np.testing.assert_array_equal(losses(smooth), losses(plain))


@variants
def test_steps_are_teacher_forcing(options):
    model = make(**options)
    expected, weights = log_probs(model)
    state, step = model.start(REGIONS)
    for t in range(TARGETS.shape[1]):
        found, state = step(begun(TARGETS)[:, t], state)
        np.testing.assert_allclose(found, expected[:, t], atol=2e-6)
        if weights is not None:
            np.testing.assert_allclose(state["attention"], weights[:, t], atol=1e-6)
    assert ("attention" in state) == (weights is not None)


@variants
def test_copies_of_a_picture_lie_next_to_each_other(options):
    model = make(**options)
    expected, _ = log_probs(model)
    state, step = model.start(REGIONS, copies=2)
    state = keras.tree.map_structure(lambda tensor: np.repeat(tensor, 2, axis=0), state)
    for t in range(2):
        found, state = step(np.repeat(begun(TARGETS)[:, t], 2), state)
        np.testing.assert_allclose(found, np.repeat(expected[:, t], 2, axis=0), atol=2e-6)


@variants
def test_neighbours_and_padding_change_nothing(options):
    model = make(**options)
    together = losses(model)
    for row, length in enumerate(REAL.sum(axis=1)):
        alone = losses(model, REGIONS[row : row + 1], TARGETS[row : row + 1, :length])
        np.testing.assert_allclose(together[row, :length], alone[0], rtol=2e-6, atol=2e-6)
    longer = losses(model, targets=np.pad(TARGETS, [(0, 0), (0, 3)]))
    np.testing.assert_allclose(longer[:, :5][REAL], together[REAL], rtol=2e-6, atol=2e-6)


@variants
def test_no_word_sees_what_comes_later(options):
    targets = np.repeat(TARGETS[:1], 4, axis=0)
    for row in (1, 2, 3):  # row 0 stays as it is, the others differ from their own word on
        targets[row, row:] = (targets[row, row:] + 1) % IDS
    found, _ = log_probs(make(**options), np.repeat(REGIONS[:1], 4, axis=0), targets)
    for row in (1, 2, 3):  # whose word is read at the place after it
        np.testing.assert_allclose(found[row, : row + 1], found[0, : row + 1], atol=1e-6)
        assert np.abs(found[row, row + 1 :] - found[0, row + 1 :]).max() > 1e-4


@variants
def test_several_captions_of_a_picture_are_as_many_calls(options):
    model = make(**options)
    targets = np.concatenate([TARGETS, TARGETS[::-1]]).reshape(2, 3, 5).transpose(1, 0, 2)
    together = losses(model, targets=targets.reshape(6, 5)).reshape(3, 2, 5)
    for number in range(2):
        np.testing.assert_allclose(together[:, number], losses(model, targets=targets[:, number]), atol=2e-6)


# ------------------------------------------------------------------------------------------------------------- looking


@variants
def test_every_region_and_its_place_matter(options):
    model = make(**options)
    pictures = np.repeat(REGIONS[:1], ROWS * COLUMNS + 1, axis=0)
    pictures[np.arange(6), np.arange(6)] += 3 * np.array([1, -1, 1, -1, 1], "float16")
    found = losses(model, pictures, np.repeat(TARGETS[:1], 7, axis=0))
    assert np.all(np.abs(found[:6] - found[6]).max(axis=1) > 1e-5)
    turned = REGIONS[:, ::-1]
    assert np.abs(losses(model, turned) - losses(model))[REAL].max() > 1e-3
    blind = randomized(untrained(**options))
    kernel = blind.projection.kernel.numpy()
    blind.projection.kernel.assign(np.where(np.arange(len(kernel))[:, None] < CHANNELS, kernel, 0))
    blind._centres = lambda: np.zeros((ROWS * COLUMNS, 2))
    if blind.look_alikes:
        blind.look_alikes.centres = blind._centres()
    np.testing.assert_allclose(losses(blind, turned)[REAL], losses(blind)[REAL], atol=1e-5)


def test_places_run_from_left_to_right_and_down():
    """The projection takes nothing but where a region is: first which row is its, then which column."""
    model = untrained(memory_units=ROWS + COLUMNS)
    model.projection.kernel.assign(np.eye(CHANNELS + ROWS + COLUMNS, ROWS + COLUMNS, -CHANNELS))
    _, memory, mask = model.see(REGIONS)
    expected = [[*np.eye(ROWS)[down], *np.eye(COLUMNS)[across]] for down in range(ROWS) for across in range(COLUMNS)]
    np.testing.assert_allclose(memory, [expected] * 3, atol=1e-6)
    assert mask.shape == (3, 6) and np.all(mask)


@variants
def test_attention_sums_to_one_or_leaves_the_rest_to_the_sentinel(options):
    _, weights = log_probs(make(**options))
    if options["attention"] == "none":
        assert weights is None
        return
    sums = np.sum(weights, axis=-1)
    assert np.min(weights) >= 0
    if options.get("gate") == "sentinel":
        assert sums.max() < 1 and sums.min() > 0 and np.ptp(sums) > 1e-3
    else:
        np.testing.assert_allclose(sums, 1, atol=1e-6)


def test_unevenness_is_its_formula():
    weights = np.random.default_rng(3).dirichlet(np.ones(6), (3, 5)).astype("float32")
    expected = np.mean([sum((1 - weights[row, real].sum(0)) ** 2) for row, real in enumerate(REAL)])
    np.testing.assert_allclose(unevenness(weights, TARGETS), expected, rtol=1e-5)
    even = np.full((2, 6, 6), 1 / 6, "float32")
    np.testing.assert_allclose(unevenness(even, np.ones((2, 6), "int32")), 0, atol=1e-6)


def test_attention_is_penalised_in_training_alone():
    plain, model = make(cell="gru"), make(cell="gru", attention_penalty=0.5)
    _, weights = log_probs(plain)
    np.testing.assert_array_equal(losses(model), losses(plain))
    assert model.losses == []
    np.testing.assert_array_equal(losses(model, training=True), losses(plain))
    np.testing.assert_allclose(model.losses, [0.5 * unevenness(weights, TARGETS)], rtol=1e-5)


def test_the_memory_ends_with_where_its_regions_are():
    plain, model = untrained(cell="gru"), untrained(cell="gru", coordinates=3.0)
    model.projection.set_weights(plain.projection.get_weights())
    expected, found = (each.see(REGIONS)[1].numpy() for each in (plain, model))
    np.testing.assert_array_equal(found[..., :-2], expected)
    x, y = [-2, 0, 2] * ROWS, [-1.5] * COLUMNS + [1.5] * COLUMNS
    np.testing.assert_allclose(found[..., -2:], np.broadcast_to(np.stack([x, y], axis=1), (3, 6, 2)), atol=1e-6)


def test_regions_know_how_many_are_like_them_and_where():
    # In a row of six, three of one look, two of another, and one that is opposite to that.
    a, b = np.array([3.0, 0, 0]), np.array([0, 2.0, 0])
    looks = np.stack([a, b, 2 * a, b, -b, a])[None].astype("float32")  # how strongly does not matter
    x = np.arange(6) / 8
    layer = LookAlikes(5, np.stack([x, np.full(6, 0.5)], axis=1))
    amount, off, reach = layer.alike(looks)
    np.testing.assert_allclose(amount[0, :, 0], [3, 2, 3, 2, 1, 3], rtol=1e-3)
    across = np.array([x[[0, 2, 5]].mean(), x[[1, 3]].mean()])[[0, 1, 0, 1, 0, 0]] - x
    across[4] = 0
    np.testing.assert_allclose(off[0], np.stack([across, np.zeros(6)], axis=1), atol=4e-4)
    of_a, of_b, alone = [5 / 8, 0.5, 1, 0.5], [3 / 8, 0.5, 7 / 8, 0.5], [4 / 8, 0.5, 4 / 8, 0.5]
    np.testing.assert_allclose(reach[0], [of_a, of_b, of_a, of_b, alone, of_a], rtol=1e-5)
    layer.build((None, 6, 3))
    layer.look.kernel.assign(np.eye(3, layer.PROJECTED))
    _, kinds = layer(np.zeros((1, 6, 5), "float32"), looks)
    np.testing.assert_allclose(kinds, [[3]], rtol=1e-3)


def test_the_same_picture_elsewhere_in_a_batch_is_seen_the_same():
    model = untrained(cell="gru", look_alikes=True)
    _, memory, _ = model.see(REGIONS)
    _, turned, _ = model.see(REGIONS[::-1])
    np.testing.assert_allclose(turned.numpy()[::-1], memory.numpy(), rtol=1e-5, atol=1e-5)


# The centres of the regions are at x = 1/6, 1/2, 5/6 and y = 1/4, 3/4.
PLACES = np.zeros((3, 5, 2, 4), "float32")
PLACES[0, 0, 0] = [0, 0, 0.6, 0.5]  # the first two
PLACES[0, 3] = [[0, 0, 0.4, 0.5], [0.7, 0.6, 0.9, 0.8]]  # the first and the last
PLACES[1, 1, 0] = [0.2, 0.3, 0.4, 0.7]  # none of them


INSIDE = np.zeros((3, 5, 6), "float32")
INSIDE[0, 0, :2] = INSIDE[0, 3, [0, 5]] = 1


def test_a_region_is_where_its_centre_is():
    centres = make(cell="gru")._centres()
    np.testing.assert_array_equal(regions_inside(PLACES, centres), INSIDE == 1)
    assert not np.any(regions_inside(PLACES[:, :, :0], centres))


def test_straying_is_its_formula():
    weights = np.random.default_rng(3).dirichlet(np.ones(6), (3, 5)).astype("float32")
    expected = -np.log([weights[0, 0, :2].sum(), weights[0, 3, [0, 5]].sum()]).mean()
    np.testing.assert_allclose(straying(weights, INSIDE), expected, rtol=1e-4)
    assert straying(weights, np.zeros_like(INSIDE)).numpy() == 0.0


def test_where_words_are_to_be_seen_is_told_in_training_alone():
    plain, model = make(cell="gru"), make(cell="gru", attention_supervision=0.5)
    _, weights = log_probs(plain)
    np.testing.assert_array_equal(losses(model), losses(plain))
    assert model.losses == []
    found = model({**given(), "places": PLACES}, training=True)
    np.testing.assert_array_equal(found, losses(plain))
    memory = model.see(REGIONS)[1].numpy()
    seen = np.stack([memory[0, :2].mean(axis=0), memory[0, [0, 5]].mean(axis=0)])
    scores = log_softmax(seen @ model.naming.kernel.numpy() + model.naming.bias.numpy())
    misnaming = -scores[[0, 1], TARGETS[0, [0, 3]]].mean()
    np.testing.assert_allclose(model.losses, [0.5 * (straying(weights, INSIDE) + misnaming)], rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------- weights


def trained_from_pixels(**options):
    return untrained(**{"cell": "gru", "train_encoder": True} | options)


@variants
def test_build_creates_every_weight_and_a_file_holds_them_all(options, tmp_path):
    model = make(**options)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = untrained(seed=2, **options)
    created = [weight.path for weight in fresh.variables]
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(losses(fresh), losses(model))
    assert [weight.path for weight in fresh.variables] == created


def test_an_encoder_that_is_trained_is_part_of_the_file(tmp_path):
    model, fresh = trained_from_pixels(), trained_from_pixels(seed=2)
    model.encoder(PICTURES, training=True)  # moves the statistics of its batch normalisation
    model.save_weights(tmp_path / "model.weights.h5")
    assert np.abs(fresh.encoder(PICTURES) - model.encoder(PICTURES)).max() > 0.01
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(losses(fresh, PICTURES), losses(model, PICTURES))
    assert model.see(PICTURES)[1].shape == (3, 16, 6)


def gradient_norms(model, seen):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(given(seen), training=False) * REAL)
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    return {
        weight.path: 0.0 if gradient is None else float(tf.norm(tf.convert_to_tensor(gradient)))
        for weight, gradient in zip(model.trainable_weights, gradients, strict=True)
    }


@variants
def test_every_weight_learns(options):
    assert {path for path, norm in gradient_norms(make(**options), REGIONS).items() if norm < 1e-5} == set()


def test_every_weight_of_the_encoder_learns():
    model = randomized(trained_from_pixels())
    norms = gradient_norms(model, PICTURES)
    found = [norms[weight.path] for weight in model.encoder.trainable_weights]
    assert len(found) >= 12 and min(found) > 0


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_the_encoder_moves_by_its_share_of_the_rate(share):
    moved = []
    for rate in (1.0, share):
        model = randomized(trained_from_pixels(encoder_rate=rate))
        before = [weight.numpy() for weight in model.trainable_weights]
        options = {"optimizer": "sgd", "schedule": "constant", "learning_rate": 0.5, "clip_norm": 0.0}
        model.compile(build_optimizer(TrainingConfig(**options), 10), OwnLoss(), run_eagerly=True)
        model.train_on_batch(given(PICTURES), TARGETS, sample_weight=REAL.astype("float32"))
        moved.append([after.numpy() - each for after, each in zip(model.trainable_weights, before, strict=True)])
    encoder, count = {weight.path for weight in model.encoder.trainable_weights}, 0
    for weight, whole, part in zip(model.trainable_weights, *moved, strict=True):
        own = weight.path in encoder
        np.testing.assert_allclose(part, (share if own else 1.0) * whole, atol=1e-6)
        count += own and np.abs(whole).max() > 1e-5
    assert count >= 6


@pytest.mark.parametrize("name", ["embedding", "memory", "output", "layers"])
def test_each_dropout_acts_in_training_only(name):
    model, plain = untrained(cell="gru", **{f"dropout_{name}": 0.5}), untrained(cell="gru")
    plain.set_weights(model.get_weights())
    np.testing.assert_array_equal(losses(model), losses(plain))
    assert np.abs(losses(model, training=True) - losses(model, training=True)).max() > 1e-4
    np.testing.assert_array_equal(losses(plain, training=True), losses(plain))


def test_half_precision_ends_in_float32():
    exact = make(cell="lstm")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = untrained(cell="lstm")
    finally:
        keras.config.set_dtype_policy("float32")
    model.set_weights(exact.get_weights())
    found = model(given())
    assert found.dtype == tf.float32 and {weight.dtype for weight in model.trainable_weights} == {"float32"}
    np.testing.assert_allclose(found, losses(exact), atol=0.15)


# -------------------------------------------------------------------------------------------------- scheduled sampling


def test_words_of_its_own_are_read_in_training_alone():
    plain, model = make(cell="gru"), make(cell="gru", scheduled_sampling=0.5)
    np.testing.assert_array_equal(losses(model), losses(plain))
    found = [losses(model, training=True) for _ in range(8)]
    np.testing.assert_array_equal([each[:, 0] for each in found], [losses(plain)[:, 0]] * 8)  # bos is read as it is
    assert any(np.abs(each - losses(plain))[:2, 1].max() > 1e-4 for each in found)


def test_some_words_are_those_that_the_model_would_write():
    model = randomized(untrained(cell="gru", scheduled_sampling=0.3))
    model.writer.output_bias.assign(100 * np.eye(IDS)[3])
    tokens = np.tile(begun(TARGETS[:1]), (300, 20))[:, :100]
    found = model._with_own_words(tokens, model.see(np.repeat(REGIONS[:1], 300, axis=0))).numpy()
    np.testing.assert_array_equal(found[:, 0], tokens[:, 0])
    own = found != tokens
    assert np.all(found[own] == 3) and 0.28 < np.mean(own[:, 1:]) < 0.32


# ------------------------------------------------------------------------------------------------------ self-critical


def writing(**options):
    """A model whose captions are longer than a word or two."""
    model = randomized(untrained(cell="gru", **options))
    model.writer.output_bias.assign([-9, -9, -1, 0, 0, 0, 0, 0, 0])
    return model


class Judge:
    """A reward that notes what it is asked."""

    def __init__(self, value):
        self.value, self.asked = value, []

    def __call__(self, captions, references):
        self.asked.append((captions, references))
        return np.array([self.value(row) for row in captions], np.float32)


def rewarded(value):
    """A model that two captions of each of three pictures were asked of, its judge, its loss and the gradients."""
    judge = Judge(value)
    model = writing(reward=judge)
    references = np.arange(3 * 2 * 4).reshape(3, 2, 4).astype("int32")
    inputs = {**given(targets=np.repeat(TARGETS, 2, axis=0)), "references": references}
    weights = (inputs["targets"] != 0).astype("float32")
    with tf.GradientTape() as tape:
        loss = OwnLoss()(inputs["targets"], model(inputs, training=True), sample_weight=weights)
    return model, judge, loss, tape.gradient(loss, [weight.value for weight in model.trainable_weights])


def test_what_is_drawn_becomes_more_probable_by_as_much_as_it_is_better():
    model, judge, loss, gradients = rewarded(lambda row: float(np.sum(row) / 5))
    (drawn, references), (usual, same) = judge.asked
    np.testing.assert_array_equal(references, np.repeat(np.arange(24).reshape(3, 2, 4), 2, axis=0))
    np.testing.assert_array_equal(same, references)
    assert drawn.shape[0] == usual.shape[0] == 6 and max(drawn.shape[1], usual.shape[1]) <= 6
    np.testing.assert_array_equal(usual[0::2], usual[1::2])
    assert np.any(drawn[0::2] != drawn[1::2])
    advantage = np.array([judge.value(a) - judge.value(b) for a, b in zip(drawn, usual, strict=True)], "float32")
    assert np.abs(advantage).max() > 0.5
    with tf.GradientTape() as tape:
        found = model(given(targets=drawn), training=False) * (drawn != 0)
        expected = tf.reduce_sum(advantage * tf.reduce_sum(found, axis=1)) / (2.0 * REAL.sum())
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    wanted = tape.gradient(expected, [weight.value for weight in model.trainable_weights])
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(one), tf.convert_to_tensor(other), atol=1e-5)


def test_what_is_no_better_changes_nothing():
    _, judge, loss, gradients = rewarded(lambda row: 2.5)
    assert len(judge.asked) == 2 and float(loss) == 0
    assert all(np.all(tf.convert_to_tensor(gradient) == 0) for gradient in gradients)


def test_rewards_are_for_training_alone():
    judge = Judge(lambda row: 1.0)
    model = randomized(untrained(cell="gru", reward=judge))
    np.testing.assert_array_equal(losses(model), losses(make(cell="gru")))
    assert judge.asked == []


def test_every_step_draws_other_captions():
    judge = Judge(lambda row: 1.0)
    model = writing(reward=judge)
    for _ in range(2):
        model({**given(), "references": np.ones((3, 1, 2), "int32")}, training=True)
    (first, _), (usual, _), (second, _), (again, _) = judge.asked
    np.testing.assert_array_equal(usual, again)
    assert first.shape != second.shape or np.any(first != second)
