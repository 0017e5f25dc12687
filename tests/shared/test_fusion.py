"""Two models in one search: the sums are right at every step, and the search sees the first one's attention."""

import numpy as np
import pytest
import tensorflow as tf

from shared.decoding import beam_search, fuse, greedy
from tests.shared.test_decoding import EOS, Model

OWN, OTHER = Model(1), Model(2)
LIMITS = 3, tf.constant([6, 6, 6]), 6


def fused(weight, attention=True):
    return fuse(OWN.start(attention=attention), OWN.step, OTHER.start(attention=False), OTHER.step, weight)


def walked(weight, sentence):
    """What greedy search over the sums finds, by listing."""
    tokens = []
    while len(tokens) < 6 and tokens[-1:] != [EOS]:
        scores = OWN.walk(sentence, tokens)[0] + weight * OTHER.walk(sentence, tokens)[0]
        tokens.append(int(np.argmax(scores[EOS:])) + EOS)
    return tokens


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_greedy_search_follows_the_sums(weight):
    state, step = fused(weight)
    found = greedy(step, state, *LIMITS).numpy()
    for sentence, tokens in enumerate(found.tokens[:, 0].tolist()):
        expected = walked(weight, sentence)
        assert tokens[: len(expected)] == expected
        both = [model.score(sentence, expected) for model in (OWN, OTHER)]
        assert found.scores[sentence, 0] == pytest.approx(both[0] + weight * both[1], rel=1e-5)


def test_the_other_model_can_change_the_result():
    assert any(walked(0.0, sentence) != walked(2.0, sentence) for sentence in range(3))


def test_a_weight_of_zero_changes_nothing_in_a_beam():
    expected = beam_search(OWN.step, OWN.start(), *LIMITS, 4, 1.0, 0.2, 0, OWN.source_mask).numpy()
    state, step = fused(0.0)
    found = beam_search(step, state, *LIMITS, 4, 1.0, 0.2, 0, OWN.source_mask).numpy()
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_attention_is_the_first_model_s_or_none():
    for attention in (True, False):
        state, step = fused(0.5, attention)
        assert (greedy(step, state, *LIMITS).attention is not None) == attention
