"""A trained run goes in; predictions of a split and their scores come out."""

import functools
import importlib
import json
import logging
import time

from shared import checkpoints
from shared.config import UserError, load_config
from shared.run import Run, write_atomically
from shared.task import Context

log = logging.getLogger(__name__)


def restore(task, run, config) -> Context:
    """The run's features and its model with the best weights."""
    import keras
    import tensorflow as tf

    if config.training.deterministic:
        tf.config.experimental.enable_op_determinism()  # whose kernels round as those of the training did
    if not run.features.exists():
        raise UserError(f"{run.directory}: holds no features, so it was never trained; train it first")
    features, precision = task.load_features(config, run.features), keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.training.precision)
    model = task.build_model(config, features)
    keras.config.set_dtype_policy(precision)  # another run's model may be at work beside this one
    checkpoints.restore_best(run.checkpoints, model)
    return Context(run=run, config=config, features=features, model=model)


@functools.lru_cache(maxsize=1)
def restore_language_model(directory, digest) -> Context:
    """A run of the language model, to be mixed into another model's search.

    Args:
        digest: of the other model's vocabulary, see shared.text; UserError if the run has another one, or if it reads
            from both sides.
    """
    # By name, since no task imports another one: whichever task asks gets a model that follows the search protocol.
    program = importlib.import_module("tasks.language_model.__main__").PROGRAM
    run = Run.open(directory, program.config_class)
    config = load_config(program.config_class, run.config)
    if config.model.bidirectional:
        raise UserError(f"decoding.language_model: {directory} reads from both sides; it must read from the left alone")
    context = restore(program.load_task(), run, config)
    if context.features.vocabulary.digest() != digest:
        raise UserError(
            f"decoding.language_model: {directory} has another vocabulary; train it with vocabulary.file set to the "
            "target vocabulary in the features folder of this run"
        )
    return context


def evaluate(task, run, config, split=None) -> dict:
    """Decodes a whole split with the best weights; writes predictions and scores, and returns the scores.

    Without a split: "test", or "valid" where the corpus has no test split. UserError if there is no such split.
    """
    corpus = task.prepare(config)
    split = split or ("test" if "test" in corpus.splits else "valid")
    if split not in corpus.splits:
        raise UserError(f"--split {split}: {corpus.name} has only {', '.join(corpus.splits)}")
    context = restore(task, run, config)
    started = time.perf_counter()
    predictions = task.decode(config, context.model, context.features, corpus, split, 0)
    seconds = time.perf_counter() - started
    log.info("%s: %d examples in %.1f s, %.1f a second", split, len(predictions), seconds, len(predictions) / seconds)
    scores = task.score(predictions, config)
    if split in corpus.optimum:
        scores["optimum_perplexity"] = corpus.optimum[split]
    lines = (json.dumps(prediction, ensure_ascii=False) for prediction in predictions)
    write_atomically(run.predictions(split), "".join(f"{line}\n" for line in lines))
    run.merge_scores(split, scores)
    return scores
