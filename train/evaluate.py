"""`python -m train.evaluate RUN`: the perplexity of a trained model on a split, every token scored once."""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd import evaluation_mode, no_backprop_mode
from autograd.backend import get_array_module
from autograd.command import Parser
from autograd.errors import InputError
from autograd.functions.loss import IGNORE
from autograd.parallel import num_threads, run_parts, split_range
from minilstm import LanguageModel
from minilstm.language_model import State
from minilstm.lstm_kernels import unit_parts
from train.batches import Read
from train.communicator import Communicator, get_communicator
from train.log import format_perplexity, progress
from train.rows import WARM_UP, Row, rows_of_rank, share, walk
from train.signals import StopRequest, StopRequestedError

if TYPE_CHECKING:
    from train.corpus import Corpus

PROTOCOLS = {
    "carried": "state carried through the split",
    "zero": "zero state every {window} tokens",
}
"""How each protocol is named beside a result. Carried: exact with one row; several rows start from the state
that the last words before them leave. Zero: windows know nothing of each other, so any number is exact."""
PROTOCOL = PROTOCOLS["carried"]
MOST_ROWS = 64
"""Rows scored side by side unless told otherwise: with more, a recurrent product gets no faster."""
TOKENS_AT_A_TIME = 2048
"""Over all rows of a group; enough for every product, and no more memory than training takes."""


def evaluate(
    model: LanguageModel,
    read: Read,
    num_tokens: int,
    eos_id: int,
    communicator: Communicator,
    batch_size: int = 0,
    window: int = 70,
    description: str | None = None,
    protocol: str = "carried",
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Perplexity of a split: exp(sum of negative log-likelihoods / number of tokens).

    The split is one stream, the first word of which is predicted after `<eos>`. Neither the number of rows
    that are read side by side nor that of the ranks, which share them, changes the result.

    Args:
        model: weights equal on every rank.
        read, num_tokens: the split's token ids and how many there are.
        eos_id: id of `<eos>`.
        batch_size: rows, over all ranks; 0: as many as pay.
        window: steps at a time, at most: for memory and speed alone where the state is carried, what the
            protocol is about where it is zero.
        description: shown with a progress bar on the root; None: silent.
        protocol: "carried": the state goes through the whole split. The split is cut into batch_size rows,
            which warm up on the text before them. "zero": the state is zero every `window` tokens, and the
            word before them is all that the model then knows.
        stop: looked at after every window.

    Returns:
        loss (nats per token), perplexity, scored_tokens, protocol, seconds: the same on every rank.

    Raises:
        InputError: another protocol's name.
        StopRequestedError: on every rank, when one was asked to stop before all had scored their share.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol: expected {' or '.join(PROTOCOLS)}; got {protocol!r}")
    began = time.perf_counter()
    description = description if communicator.is_root else None
    batch_size = batch_size or _rows_that_pay(num_tokens, window, protocol)
    try:
        if protocol == "carried":
            rows = rows_of_rank(read, num_tokens, eos_id, batch_size, communicator)
            own_sums = _score_rows(model, rows, window, description, stop)
        else:
            windows = share(-(-num_tokens // window), communicator)
            own = range(windows.start * window, min(windows.stop * window, num_tokens))
            own_sums = _score_windows(model, read, own, eos_id, batch_size, window, description, stop)
    except _ShareLeftError:
        own_sums = (0.0, 0)  # the sum over the ranks, which all wait in, tells them
    total, count, *stops = communicator.allreduce_sum([*own_sums, *(stop.flags() if stop else ())])
    if stop and (signal_number := stop.agreed(stops)):
        raise StopRequestedError(signal_number)
    return {
        **loss_and_perplexity(float(total / count)),
        "scored_tokens": int(count),
        "protocol": PROTOCOLS[protocol].format(window=window),
        "seconds": time.perf_counter() - began,
    }


def _rows_that_pay(num_tokens: int, window: int, protocol: str) -> int:
    """How many rows to score side by side: where the state is carried, each reads its warm-up besides, which
    is no more than half of its own part."""
    if protocol == "zero":
        return max(TOKENS_AT_A_TIME // window, 1)
    return min(max(num_tokens // (2 * WARM_UP), 1), MOST_ROWS)


class _ShareLeftError(Exception):
    """This rank leaves its share of the split unscored."""


def loss_and_perplexity(loss: float) -> dict[str, float]:
    """The two figures of every result; a loss beyond all sense does not overflow."""
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def _score_rows(
    model: LanguageModel, rows: list[Row], window: int, description: str | None, stop: StopRequest | None
) -> tuple[float, int]:
    """Sum of negative log-likelihoods and number of the words that these rows are to score."""
    is_left = threading.Event()

    def score(group: slice) -> tuple[float, int]:
        is_first = group.start == 0  # it runs in the calling thread, which alone speaks with other ranks

        def leave_if_wanted() -> None:
            if is_first and stop and stop.is_wanted():
                is_left.set()
            if is_left.is_set():
                raise _ShareLeftError

        return _score_group(model, rows[group], window, description if is_first else None, leave_if_wanted)

    sums = run_parts(score, _groups(model, len(rows)))
    return sum(total for total, _ in sums), sum(count for _, count in sums)


def _groups(model: LanguageModel, rows: int) -> list[slice]:
    """Which rows go through the model together: all of them, or, where its layers are too small to be shared
    among threads unit by unit, as many groups as there are threads, each in one from end to end."""
    xp = get_array_module(model.flat_parameters)
    whole = all(len(unit_parts(model.flat_parameters, rows, layer.units)) == 1 for layer in model.layers)
    return split_range(rows, num_threads() if xp is np and whole else 1)


def _score_group(
    model: LanguageModel,
    rows: list[Row],
    window: int,
    description: str | None,
    leave_if_wanted: Callable[[], None],
) -> tuple[float, int]:
    """`_score_rows` of rows that go through the model together."""
    total, count = 0.0, 0

    def step(inputs: np.ndarray, words: np.ndarray, scored: np.ndarray, state: State) -> State:
        nonlocal total, count
        leave_if_wanted()
        number = int(scored.sum())
        if not number:
            return model.encode(inputs, state)[1]
        loss, state = model(inputs, np.where(scored, words, IGNORE), state)
        total, count = total + loss.item() * number, count + number
        return state

    steps = min(window, max(TOKENS_AT_A_TIME // max(len(rows), 1), 1))
    walk(model, rows, steps, step, description)
    return total, count


def _score_windows(
    model: LanguageModel,
    read: Read,
    tokens: range,
    eos_id: int,
    batch_size: int,
    window: int,
    description: str | None,
    stop: StopRequest | None,
) -> tuple[float, int]:
    """The same of these tokens of the split, `window` of them a row, each row from a zero state."""
    total = 0.0
    bar = progress(len(tokens), description or "", "tokens", enabled=description is not None, leave=False)
    with no_backprop_mode(), evaluation_mode(), bar:
        for first in range(tokens.start, tokens.stop, batch_size * window):
            if stop and stop.is_wanted():
                raise _ShareLeftError
            words = read(first, min(first + batch_size * window, tokens.stop))
            before = read(first - 1, first) if first else np.array([eos_id], words.dtype)
            inputs = np.concatenate([before, words[:-1]])
            whole = len(words) // window * window
            for part in (slice(0, whole), slice(whole, len(words))):  # the split's last window may be shorter
                if len(words[part]):
                    steps = min(window, len(words[part]))
                    loss, _ = model(_columns(inputs[part], steps), _columns(words[part], steps))
                    total += loss.item() * len(words[part])
            bar.update(len(words))
    return total, len(tokens)


def _columns(ids: np.ndarray, steps: int) -> np.ndarray:
    """(T, B): each `steps` ids in a row's column."""
    return np.ascontiguousarray(ids.reshape(-1, steps).T)


Score = Callable[[LanguageModel, "Corpus", Communicator], dict[str, Any]]
"""What a command line asks for: scores a model on a split of the corpus."""


def main(argv: list[str] | None = None) -> int:
    """The command; prints the perplexity."""
    from train.corpus import open_corpus
    from train.device import open_device
    from train.prepare import ensure_prepared
    from train.run_folder import load_trained
    from train.threads import launcher

    args = _parser().parse_args(argv)
    communicator = get_communicator()
    score = _scorer(args, communicator)  # what is wrong with the flags is told before anything is read
    device = open_device(args.device, "float32", launcher(), share_gpus=True)
    model, config, vocabulary, facts = load_trained(args.run, args.checkpoint, averaged=not args.unaveraged)
    model.move_to(device.xp)
    args.window = args.window or config.train.evaluation_window  # as the run itself scored
    data, min_count = args.data or config.train.data, config.train.min_count or None
    with open_corpus(ensure_prepared(data, None, communicator, min_count=min_count)) as corpus:
        if corpus.fingerprint != vocabulary.fingerprint():
            raise InputError(
                f"{corpus.path}: has another vocabulary than the run ({len(corpus.vocabulary)} words, "
                f"{len(vocabulary)} there); prepare it from the text that the run was trained on"
            )
        result = score(model, corpus, communicator)
    if communicator.is_root:
        _print(args, facts["position"]["step"], result)
    return 0


def _parser() -> Parser:
    from train import cache_pointer, dynamic_evaluation
    from train.corpus import SPLITS
    from train.run_folder import BEST, LATEST

    parser = Parser(prog="python -m train.evaluate", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    parser.add_argument("--checkpoint", choices=(BEST, LATEST), default=BEST, help="default: best")
    parser.add_argument(
        "--unaveraged",
        action="store_true",
        help="with --checkpoint latest: the weights that NT-ASGD's last step left, not their average",
    )
    parser.add_argument("--data", metavar="NAME", help="default: the data that the run was trained on")
    parser.add_argument(
        "--protocol",
        choices=tuple(PROTOCOLS),
        default="carried",
        help="the state goes through the split (default), or is zero every --window tokens",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="rows scored at a time; default: as many as pay, with --pointer 1",
    )
    parser.add_argument(
        "--window", type=int, metavar="T", help="steps scored at a time; default: the run's evaluation_window"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cache_pointer.add_flags(parser)
    dynamic_evaluation.add_flags(parser)
    return parser


def _scorer(args: argparse.Namespace, communicator: Communicator) -> Score:
    """What the flags ask for; an InputError where they contradict each other."""
    from train import cache_pointer, dynamic_evaluation
    from train.run_folder import LATEST

    if args.pointer and args.dynamic:
        raise InputError("--pointer and --dynamic: cannot be combined; leave one of them out")
    if args.unaveraged and args.checkpoint != LATEST:
        raise InputError(
            f"--unaveraged: needs --checkpoint {LATEST}, the only one that keeps both; got {args.checkpoint}"
        )
    mode = "pointer" if args.pointer else "dynamic" if args.dynamic else None
    _refuse_idle_flags(args, mode)
    for name in ("batch_size", "window"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')}: must be at least 1; got {value}")
    if mode == "pointer":
        return cache_pointer.scorer(args)
    if mode == "dynamic":
        return dynamic_evaluation.scorer(args, communicator)
    return lambda model, corpus, communicator: evaluate(
        model,
        *stream_of(corpus, args.split),
        communicator,
        args.batch_size or 0,
        args.window,
        description=f"scoring {args.split}",
        protocol=args.protocol,
    )


def _refuse_idle_flags(args: argparse.Namespace, mode: str | None) -> None:
    """Raise an InputError for a flag that this mode of evaluation does not look at."""
    for name, value in vars(args).items():
        owner, flag = name.partition("_")[0], f"--{name.replace('_', '-')}"
        if owner in ("pointer", "dynamic") and owner != mode and value is not None and name != owner:
            raise InputError(f"{flag}: acts with --{owner} alone; add that, or leave {flag} out")
    if mode and args.device != "cpu":
        raise InputError(
            f"--device {args.device}: does not act with --{mode}, which runs on the cpu; leave it out"
        )
    if mode and args.protocol != "carried":
        raise InputError(f"--protocol {args.protocol}: does not act with --{mode}, which carries the state")
    if mode and args.window is not None:
        raise InputError(f"--window: does not act with --{mode}; leave it out")
    if mode == "dynamic" and args.batch_size is not None:
        raise InputError("--batch-size: does not act with --dynamic, which reads one stream; leave it out")


def stream_of(corpus: Corpus, split: str) -> tuple[Read, int, int]:
    """(read, num_tokens, eos_id) of a split, as `evaluate` takes them."""
    read: Read = lambda start, stop: corpus.read(split, start, stop)  # noqa: E731
    return read, corpus.num_tokens(split), corpus.vocabulary.eos_id


def _print(args: argparse.Namespace, step: int, result: dict[str, Any]) -> None:
    if args.json:
        facts = {"run": str(args.run), "split": args.split, "step": step, "tokens": result["scored_tokens"]}
        print(json.dumps({**facts, **result}))
        return
    speed = result["scored_tokens"] / max(result["seconds"], 1e-9)
    print(
        f"{args.split}: perplexity {format_perplexity(result['perplexity'])}, "
        f"loss {result['loss']:.4f} nats over "
        f"{result['scored_tokens']:,} tokens ({result['protocol']}), weights of step {step:,}, "
        f"{speed:,.0f} tokens/s"
    )
    if "static_perplexity" in result:
        before = result["static_perplexity"]
        change = result["perplexity"] / before - 1
        print(f"without it: perplexity {format_perplexity(before)}; with it {change:+.1%}")


if __name__ == "__main__":
    from train.commands import run

    run(main)
