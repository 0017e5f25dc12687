"""The steps of `own` by PyTorch's layers, on a CPU or a GPU. Needs `pip install torch`."""

import sys
from collections.abc import Callable

from sizes import BATCH, RECOGNISER, STEPS, WORDS, language_model_batch

# PyTorch's optimisers look for its compiler, which nothing here uses; loading it beside TensorFlow was a crash.
sys.modules["triton"] = None

try:
    import torch
except ImportError:
    sys.exit("error: the bench needs PyTorch: .venv/bin/python -m pip install torch")

LEARNING_RATE, CLIP_NORM = 0.001, 1.0  # of the recogniser, as `TrainingConfig` has them


class LanguageModel(torch.nn.Module):
    """Its layers are in the order of PyTorch's word_language_model example."""

    def __init__(self, units, layers, dropout):
        super().__init__()
        self.dropout = torch.nn.Dropout(dropout)
        self.embedding = torch.nn.Embedding(WORDS, units)
        self.recurrence = torch.nn.LSTM(units, units, layers, dropout=dropout)
        self.output = torch.nn.Linear(units, WORDS)
        self.output.weight = self.embedding.weight
        torch.nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, tokens, state):
        outputs, state = self.recurrence(self.dropout(self.embedding(tokens)), state)
        return self.output(self.dropout(outputs)), state


def language_model_steps(
    streams, window, units, layers, dropout, device="cpu", bfloat16=False
) -> tuple[Callable, Callable]:
    """(training step, scoring)."""
    model = LanguageModel(units, layers, dropout).to(device)
    zeros = torch.zeros(layers, streams, units, device=device)
    carried = [(zeros, zeros)]
    arrays = language_model_batch(streams, window)

    def losses(reduction):
        tokens, targets = (torch.from_numpy(array.T.copy()).long().to(device) for array in arrays)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            scores, carried[0] = model(tokens, [part.detach() for part in carried[0]])
            return torch.nn.functional.cross_entropy(
                scores.reshape(-1, WORDS), targets.reshape(-1), reduction=reduction
            )

    def train():
        model.train()
        model.zero_grad()
        loss = losses("mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        with torch.no_grad():
            for weight in model.parameters():
                weight -= weight.grad
        return loss.item()  # waits for the device

    def score():
        model.eval()
        with torch.no_grad():
            return losses("none").cpu().numpy()

    return train, score


class Recogniser(torch.nn.Module):
    """Frames (batch, steps, columns) -> log probabilities (batch, steps, classes)."""

    def __init__(self):
        super().__init__()
        units, size = RECOGNISER["units"], RECOGNISER
        self.recurrence = torch.nn.LSTM(size["columns"], units, size["layers"], batch_first=True, bidirectional=True)
        self.output = torch.nn.Linear(2 * units, size["classes"])

    def forward(self, features):
        return torch.log_softmax(self.output(self.recurrence(features)[0]).float(), dim=-1)


def recogniser_step(head: str, arrays: dict, device="cpu", bfloat16=False) -> Callable:
    """A training step."""
    model = Recogniser().to(device)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)

    def step():
        batch = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            log_probs = model(batch["features"])
        if head == "frames":
            wanted = batch["frame_phones"].long().reshape(-1)
            loss = torch.nn.functional.nll_loss(log_probs.reshape(-1, RECOGNISER["classes"]), wanted)
        else:
            sizes = batch["lengths"].long(), (batch["labels"] != 0).sum(1)
            labels = batch["labels"].long()
            loss = torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), labels, *sizes, reduction="sum") / (
                BATCH * STEPS
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()  # waits for the device

    return step
