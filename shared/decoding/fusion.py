"""A second model in the search: two step functions go in, one that follows both comes out."""

import tensorflow as tf


def fuse(state, step, other_state, other_step, weight):
    """Shallow fusion (Gulcehre et al. 2015, section 4.1): log p(y) + weight log q(y), with p the first model's.

    Both read the same tokens of the same vocabulary. The sums are scores, not the logarithms of probabilities.

    Args:
        state: the first model's, a dict; its "attention", where it has one, is the new state's, too.
        step, other_step: of the search protocol.
        other_state: any nest with as many rows.

    Returns:
        (state, step).
    """

    def fused(tokens, state):
        own, other = state["own"], state["other"]
        log_probs, own = step(tokens, own)
        other_log_probs, other = other_step(tokens, other)
        log_probs = tf.cast(log_probs, tf.float32) + weight * tf.cast(other_log_probs, tf.float32)
        return log_probs, _with_attention(own, other)

    return _with_attention(state, other_state), fused


def _with_attention(own, other):
    shown = {"attention": own["attention"]} if "attention" in own else {}
    return {"own": own, "other": other, **shown}
