"""What a task hands to the straight line: a `Task` names its functions, a `Corpus` is what its first one returns.

A task is data, not a base class: `shared.train` and `shared.evaluate` call the named functions in order.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import numpy as np
    import tensorflow as tf

    from shared.run import Run


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared corpus: fresh streams of single examples, and what is known about them."""

    splits: Mapping[str, Callable[[], "tf.data.Dataset"]]
    """"train", "valid", "test" -> a function that opens a fresh dataset of single examples (dicts of tensors)."""
    sizes: Mapping[str, int]
    """Split -> number of examples."""
    optimum: Mapping[str, float] = field(default_factory=dict)
    """Split -> the lowest perplexity that any model can reach, where it is exactly known; else empty."""
    name: str = ""
    """What reports call the corpus."""
    identity: str = ""
    """Another one for every other content, and fit for a file's name: names what is derived from the corpus."""


@dataclass(frozen=True)
class Context:
    """A restored run, as `shared.evaluate.restore` hands it to `predict` and to a task's own verbs."""

    run: "Run"
    """The run directory."""
    config: Any
    """The run's configuration, with the command line's `decoding.*` overrides applied."""
    features: Any
    """What was fitted on the training split, loaded from the run."""
    model: "keras.Model"
    """Built and holding the run's best weights."""


@dataclass(frozen=True)
class Task:
    """The functions of one task, in the order in which data passes through them."""

    name: str
    """The task's folder under tasks/, configs/ and runs/."""
    monitor: Callable[[Any], str]
    """config -> the validation score that chooses the best checkpoint, see `rank`."""
    prepare: Callable[[Any], Corpus]
    """config -> corpus; builds it once and finds it again; UserError for what the user's files lack."""
    fit_features: Callable[[Any, Corpus], Any]
    """(config, corpus) -> features fitted on the training split; the object has `save(directory)`."""
    load_features: Callable[[Any, Path], Any]
    """(config, directory) -> the features that were saved there."""
    training_batches: Callable[[Any, Corpus, Any, int], "tf.data.Dataset"]
    """(config, corpus, features, first_step) -> endless (inputs, targets, weights) from that step on; a pure function
    of the configuration's seed and the step."""
    steps_per_pass: Callable[[Any, Corpus, Any], int]
    """(config, corpus, features) -> batches in one pass over the training split."""
    build_model: Callable[[Any, Any], "keras.Model"]
    """(config, features) -> a built, uncompiled model with fresh weights drawn from `training.seed`."""
    loss: Callable[[Any], "keras.losses.Loss"]
    """config -> the loss of the model's outputs, a mean in nats."""
    decode: Callable[[Any, "keras.Model", Any, Corpus, str, int], list[dict]]
    """(config, model, features, corpus, split, limit) -> one prediction per example, in order; limit 0: all of them."""
    score: Callable[[list[dict], Any], dict[str, float | str]]
    """(predictions, config) -> score name -> value; rates and BLEU in per cent."""
    illustrate: Callable[[Any, "keras.Model", Any, Corpus, list[dict]], dict[str, "np.ndarray"]]
    """(config, model, features, corpus, a round's predictions of the validation split) -> name -> picture, uint8
    (height, width, 3 or 4), `training.sample_examples` of a kind."""
    embeddings: Callable[["keras.Model", Any], dict[str, tuple["np.ndarray", list[str]]]]
    """(model, features) -> name -> (matrix (tokens, units), tokens), for TensorBoard's projector."""
    predict: Callable[[Context, argparse.Namespace], None]
    """(context, arguments) -> results on stdout, one line per input."""
    verbs: Mapping[str, Callable[[Context, argparse.Namespace], None]] = field(default_factory=dict)
    """The task's own verbs, called as `predict` is."""
    sounds: Callable[[Any, Corpus, list[dict]], dict[str, tuple["np.ndarray", int]]] = lambda *_: {}
    """(config, corpus, predictions as `illustrate` has them) -> name -> (samples in [-1, 1], rate in Hz)."""
    start: Callable[[Any, "keras.Model", Any], None] = lambda *_: None
    """(config, model, features) -> sets weights that a new training starts from; UserError for what cannot be used."""


def rank(monitor: str, values: Mapping[str, float]) -> list[float]:
    """What compares rounds by their validation scores, greater being better.

    The monitored score comes first, of which more is better unless it is a perplexity or an error rate; then the
    perplexity, which tells apart rounds of equal score.
    """
    names = [name for name in (f"valid_{monitor}", "valid_perplexity") if name in values]
    less_is_better = ("perplexity", "error_rate")
    return [-values[name] if any(kind in name for kind in less_is_better) else values[name] for name in names]
