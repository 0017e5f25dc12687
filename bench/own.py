"""This project's steps, as functions without arguments; `rival` has the same of PyTorch."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tensorflow as tf
from sizes import BATCH, RECOGNISER, STEPS, WORDS, language_model_batch

from shared.config import TrainingConfig
from shared.losses import OwnLoss
from shared.optimization import build_optimizer
from tasks.language_model.config import ModelConfig as LanguageModelConfig
from tasks.language_model.model import LanguageModel
from tasks.speech.config import ModelConfig as RecogniserConfig
from tasks.speech.model import Recogniser

TRAINING = TrainingConfig()


def language_model_steps(streams, window, units, layers, dropout) -> tuple[Callable, Callable]:
    """(training step, scoring) of `tasks.language_model`."""
    config = LanguageModelConfig(
        units=units, embedding_units=units, layers=layers, dropout_embedding=dropout, dropout_layers=dropout,
        dropout_output=dropout,
    )  # fmt: skip
    model = LanguageModel(config, WORDS, streams)
    model.build()
    training = TrainingConfig(optimizer="sgd", learning_rate=1.0, schedule="constant", clip_norm=0.25)
    model.compile(build_optimizer(training, 1000), OwnLoss(), jit_compile=False)
    tokens, targets = language_model_batch(streams, window)
    batch = {"tokens": tokens, "targets": targets, "begins": np.zeros(streams, bool)}
    weights = np.ones((streams, window), np.float32)
    score = tf.function(lambda batch: model(batch, training=False))
    return lambda: model.train_on_batch(batch, targets, weights), lambda: score(batch).numpy()


def recogniser(head: str) -> Recogniser:
    """A fresh model of `tasks.speech`."""
    size = RECOGNISER
    config = RecogniserConfig(units=size["units"], layers=size["layers"], head=head)
    model = Recogniser(config, size["columns"], size["classes"], size["classes"])
    model.build()
    return model


def recogniser_step(head: str, batch: dict) -> Callable:
    """A training step of `recogniser`."""
    model = recogniser(head)
    model.compile(build_optimizer(TRAINING, 1000), OwnLoss(), jit_compile=False)
    zeros, weights = np.zeros((BATCH, STEPS), np.int32), np.ones((BATCH, STEPS), np.float32)
    return lambda: model.train_on_batch(batch, zeros, weights)
