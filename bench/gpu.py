"""Training steps of the language model and the recogniser on a GPU, this project's or PyTorch's.

    python bench/gpu.py own
    python bench/gpu.py rival

The steps are those of bench/language_model.py and bench/speech.py, in float32, of which either library rounds the
products to TF32, and in mixed precision. One library in a process: with TensorFlow's CUDA 12 and PyTorch's CUDA 13 in
the same one, PyTorch's LSTM ended it.
"""

import argparse
import sys

from alternation import measure
from sizes import BATCH, HEADS, LANGUAGE_MODELS, STEPS, language_model_name, recogniser_batch, recogniser_name

TIMES = 5  # that the steps are measured


def own_steps(bfloat16: bool) -> list:
    """A step of each language model and of each head of the recogniser."""
    import keras
    import own

    keras.config.set_dtype_policy("mixed_bfloat16" if bfloat16 else "float32")
    steps = [own.language_model_steps(**size)[0] for size in LANGUAGE_MODELS]
    return steps + [own.recogniser_step(head, recogniser_batch()) for head in HEADS]


def rival_steps(bfloat16: bool) -> list:
    """As `own_steps`."""
    import rival

    rival.torch.backends.cuda.matmul.allow_tf32 = True
    settings = {"device": "cuda", "bfloat16": bfloat16}
    steps = [rival.language_model_steps(**size, **settings)[0] for size in LANGUAGE_MODELS]
    return steps + [rival.recogniser_step(head, recogniser_batch(), **settings) for head in HEADS]


def main():
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=("own", "rival"))
    steps_of = {"own": own_steps, "rival": rival_steps}[parser.parse_args().library]
    names = [f"language model, {language_model_name(**size)}" for size in LANGUAGE_MODELS]
    names += [f"recogniser, {head}, {recogniser_name()}" for head in HEADS]
    items = [size["streams"] * size["window"] for size in LANGUAGE_MODELS] + [BATCH * STEPS] * len(HEADS)
    sys.stdout.write("| training step | precision | milliseconds | words or frames/s |\n| --- | --- | ---: | ---: |\n")
    for bfloat16 in (False, True):
        for name, count, seconds in zip(names, items, measure(steps_of(bfloat16), TIMES), strict=True):
            precision = "bfloat16, mixed" if bfloat16 else "float32"
            sys.stdout.write(f"| {name} | {precision} | {1000 * seconds:.2f} | {count / seconds:,.0f} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
