"""`python -m train.evaluate RUN`: the perplexity of a trained model on a split, every token scored once."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from autograd import evaluation_mode, no_backprop_mode
from autograd.errors import InputError
from autograd.functions.loss import IGNORE
from minilstm import LanguageModel, detach
from train.batches import Read
from train.communicator import Communicator, get_communicator
from train.log import progress
from train.parser import Parser

PROTOCOL = "state carried through the split"
"""Exact with one row. Several rows start from the state that the last words before them leave."""
WARM_UP = 1024
"""Tokens that each row reads before its own part, unscored: its state is then the one long stream's."""


def evaluate(
    model: LanguageModel,
    read: Read,
    num_tokens: int,
    eos_id: int,
    communicator: Communicator,
    batch_size: int = 10,
    window: int = 70,
    description: str | None = None,
) -> dict[str, Any]:
    """Perplexity of a split: exp(sum of negative log-likelihoods / number of tokens).

    The split is one stream, the first word of which is predicted after `<eos>`. It is cut into batch_size
    rows that are read side by side; the rows warm up on the text before them, so the result does not depend
    on their number, nor on that of the ranks, which share the rows.

    Args:
        model: weights equal on every rank.
        read, num_tokens: the split's token ids and how many there are.
        eos_id: id of `<eos>`.
        batch_size: rows, over all ranks.
        window: steps at a time; for memory and speed alone.
        description: shown with a progress bar on the root; None: silent.

    Returns:
        loss (nats per token), perplexity, scored_tokens, protocol, seconds: the same on every rank.
    """
    began = time.perf_counter()
    batch_size = min(batch_size, num_tokens)
    bounds = [row * num_tokens // batch_size for row in range(batch_size + 1)]
    own = range(
        *(rank * batch_size // communicator.size for rank in (communicator.rank, communicator.rank + 1))
    )
    rows = [_Row(read, bounds[row], bounds[row + 1], eos_id) for row in own]
    total, count = _score(model, rows, window, description if communicator.is_root else None)
    total, count = communicator.allreduce_sum([total, count])
    loss = float(total / count)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "scored_tokens": int(count),
        "protocol": PROTOCOL,
        "seconds": time.perf_counter() - began,
    }


class _Row:
    """One piece of the stream with the text that warms it up: inputs, and targets or -1, for every step."""

    def __init__(self, read: Read, start: int, stop: int, eos_id: int) -> None:
        self.warm_up = min(WARM_UP, start)
        first = start - self.warm_up
        tokens = read(first, stop)
        before = read(first - 1, first) if first else np.array([eos_id], tokens.dtype)
        self.inputs = np.concatenate([before, tokens[:-1]])
        self.targets = tokens.copy()
        self.targets[: self.warm_up] = IGNORE

    def padded(self, length: int, warm_up: int) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) that start their own part at step `warm_up` and end at `length`."""
        before = warm_up - self.warm_up
        after = length - before - len(self.inputs)
        inputs = np.pad(self.inputs, (before, after), mode="edge")
        return inputs, np.pad(self.targets, (before, after), constant_values=IGNORE)


def _score(model: LanguageModel, rows: list[_Row], window: int, description: str | None) -> tuple[float, int]:
    """Sum of negative log-likelihoods and number of the targets of these rows."""
    if not rows:
        return 0.0, 0
    warm_up = max(row.warm_up for row in rows)
    length = max(warm_up - row.warm_up + len(row.inputs) for row in rows)
    pairs = [row.padded(length, warm_up) for row in rows]
    inputs, targets = (np.stack(arrays, axis=1) for arrays in zip(*pairs, strict=True))
    begins = np.array([warm_up - row.warm_up for row in rows])  # where each row's text starts

    total, count, state = 0.0, 0, model.initial_state(len(rows))
    bar = progress(length, description or "", "steps", enabled=description is not None, leave=False)
    with no_backprop_mode(), evaluation_mode(), bar:
        for start, stop in _cuts(length, window, set(begins.tolist())):
            for h, c in state:
                h[begins == start] = 0  # what came before was padding
                c[begins == start] = 0
            scored = int((targets[start:stop] != IGNORE).sum())
            if scored:
                loss, new_state = model(inputs[start:stop], targets[start:stop], state)
                total += loss.item() * scored
            else:
                _, new_state = model.encode(inputs[start:stop], state)
            state, count = detach(new_state), count + scored
            bar.update(stop - start)
    return total, count


def _cuts(length: int, window: int, begins: set[int]) -> list[tuple[int, int]]:
    """Windows that cover range(length), cut also where a row begins."""
    bounds = sorted({*range(0, length, window), *begins, length})
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def main(argv: list[str] | None = None) -> int:
    """The command; prints the perplexity."""
    from train.corpus import SPLITS, open_corpus
    from train.prepare import ensure_prepared
    from train.run_folder import BEST, LATEST, load_trained

    parser = Parser(prog="python -m train.evaluate", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    parser.add_argument("--checkpoint", choices=(BEST, LATEST), default=BEST, help="default: best")
    parser.add_argument("--data", metavar="NAME", help="default: the data that the run was trained on")
    parser.add_argument("--batch-size", type=int, default=10, metavar="N", help="rows scored at a time")
    parser.add_argument("--window", type=int, default=70, metavar="T", help="steps scored at a time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    for name in ("batch_size", "window"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: must be at least 1; got {getattr(args, name)}")

    communicator = get_communicator()
    model, config, vocabulary, facts = load_trained(args.run, args.checkpoint)
    with open_corpus(ensure_prepared(args.data or config.train.data, None, communicator)) as corpus:
        if corpus.fingerprint != vocabulary.fingerprint():
            raise InputError(
                f"{corpus.path}: has another vocabulary than the run ({len(corpus.vocabulary)} words, "
                f"{len(vocabulary)} there); prepare it from the text that the run was trained on"
            )
        result = evaluate(
            model,
            lambda start, stop: corpus.read(args.split, start, stop),
            corpus.num_tokens(args.split),
            vocabulary.eos_id,
            communicator,
            args.batch_size,
            args.window,
            f"scoring {args.split}",
        )
    if communicator.is_root:
        _print(args, facts["position"]["step"], result)
    return 0


def _print(args: argparse.Namespace, step: int, result: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps({"run": str(args.run), "split": args.split, "step": step, **result}))
        return
    speed = result["scored_tokens"] / max(result["seconds"], 1e-9)
    print(
        f"{args.split}: perplexity {result['perplexity']:,.2f}, loss {result['loss']:.4f} nats over "
        f"{result['scored_tokens']:,} tokens ({result['protocol']}), weights of step {step:,}, "
        f"{speed:,.0f} tokens/s"
    )


if __name__ == "__main__":
    from train.commands import run

    run(main)
