"""What the scripts beside measure: sizes of models and batches, the same for this project and for PyTorch."""

import numpy as np

WORDS = 10_000
LANGUAGE_MODELS = [
    {"streams": 20, "window": 35, "units": 200, "layers": 2, "dropout": 0.2},
    {"streams": 20, "window": 35, "units": 650, "layers": 2, "dropout": 0.5},
]
RECOGNISER = {"columns": 41, "units": 128, "layers": 2, "classes": 64}
HEADS = ("frames", "ctc")
BATCH, STEPS = 32, 300  # utterances, without padding, and their frames
LABELS = 40  # of CTC in an utterance, about as many as 3 seconds of speech have phones


def language_model_batch(streams: int, window: int) -> np.ndarray:
    """Ids and targets, int32 (2, streams, window)."""
    return np.random.default_rng(1).integers(4, WORDS, (2, streams, window), np.int32)


def language_model_name(streams: int, window: int, units: int, layers: int, **_) -> str:
    """Of a table's row."""
    return f"{streams}x{window}x{units}x{layers}x{WORDS}"


def recogniser_batch() -> dict[str, np.ndarray]:
    """As `tasks.speech` has it."""
    draw, classes = np.random.default_rng(1), RECOGNISER["classes"]
    return {
        "features": draw.standard_normal((BATCH, STEPS, RECOGNISER["columns"]), np.float32),
        "lengths": np.full(BATCH, STEPS, np.int32),
        "frame_phones": draw.integers(4, classes, (BATCH, STEPS), np.int32),
        "labels": draw.integers(4, classes, (BATCH, LABELS), np.int32),
    }


def recogniser_name() -> str:
    """Of a table's row."""
    return "x".join(map(str, (BATCH, STEPS, *RECOGNISER.values())))
