"""Speed and memory of turning text into token ids: `python -m benchmarks.prepare --tokens 103000000 --json`.

The text is generated: words by a log-uniform law (close to Zipf's), lines of 57 tokens, in WikiText form, all
in a temporary folder that is removed afterwards. The default size is WikiText-103's. Preparation runs in a
child process, whose peak resident memory the operating system reports.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from autograd.command import Parser
from autograd.errors import InputError
from benchmarks.report import add_report_flags, check_report_flags, report
from benchmarks.sizes import zipf_ids
from train.corpus import SPLITS, open_corpus
from train.environment import environment

TOKENS_PER_LINE = 57  # WikiText-103's mean, <eos> counted
_LINES = 20_000  # lines generated at a time


def make_words(num_types: int) -> np.ndarray:
    """Distinct words, frequent ones short, object array (num_types,)."""
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = []
    for rank in range(num_types):
        word, rest = "", rank + 1
        while rest:
            rest, digit = divmod(rest - 1, len(letters))  # bijective numeration: every word once
            word += letters[digit]
        words.append(word + "ing" * (rank >= len(letters)))  # gives words the mean length of English
    return np.array(words, dtype=object)


def lines_of_text(num_tokens: int, words: np.ndarray, rng: np.random.Generator) -> Iterator[str]:
    """Blocks of text of `num_tokens` tokens in all, one `<eos>` a line counted."""
    left = num_tokens
    while left > 0:
        num_lines = max(1, min(_LINES, left // TOKENS_PER_LINE))
        per_line = min(TOKENS_PER_LINE, left) - 1
        rows = words[zipf_ids(rng, (num_lines, per_line), len(words))].tolist()
        yield "".join([" ".join(row) + "\n" for row in rows])
        left -= num_lines * (per_line + 1)


def write_text(folder: Path, num_tokens: int, num_types: int, seed: int) -> int:
    """Write the three splits; valid and test are 1/400 of train each. Returns the number of tokens in all."""
    words, rng, written = make_words(num_types), np.random.default_rng(seed), 0
    for split in SPLITS:
        tokens = num_tokens if split == "train" else max(TOKENS_PER_LINE, num_tokens // 400)
        with open(folder / f"wiki.{split}.tokens", "w") as file:
            file.writelines(lines_of_text(tokens, words, rng))
        written += tokens
    return written


def prepare_in_child(folder: Path, out: Path) -> dict[str, float]:
    """Seconds, processor seconds and peak resident memory in MB of `python -m train.prepare`."""
    command = [sys.executable, "-m", "train.prepare", str(folder), "--out", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"{' '.join(command)}: ended with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_mb": usage.ru_maxrss * unit / 1e6,
    }


def measure(num_tokens: int, num_types: int, seed: int, parent: Path | None) -> dict[str, float]:
    """Generate, prepare, measure, remove."""
    with tempfile.TemporaryDirectory(prefix="prepare-benchmark-", dir=parent) as name:
        folder, out = Path(name), Path(name, "tokens.h5")
        written = write_text(folder, num_tokens, num_types, seed)
        text_bytes = sum(path.stat().st_size for path in folder.iterdir())
        used = prepare_in_child(folder, out)
        with open_corpus(out) as corpus:
            found = sum(corpus.num_tokens(split) for split in SPLITS)
            vocabulary = len(corpus.vocabulary)
    if found != written:
        raise InputError(f"expected {written} tokens, got {found}")
    return {
        "tokens": found,
        "vocabulary": vocabulary,
        "text_mb": text_bytes / 1e6,
        **used,
        "tokens_per_second": found / used["seconds"],
        "tokens_per_cpu_second": found / used["cpu_seconds"],
    }


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.prepare", description="Speed and memory of train.prepare.")
    parser.add_argument("--tokens", type=int, default=103_227_021, help="tokens of the train split")
    parser.add_argument(
        "--types", type=int, default=267_733, help="different words; <unk> and <eos> come on top"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where the temporary folder goes; 1.1 GB at the default size"
    )
    add_report_flags(parser)
    options = parser.parse_args(argv)
    check_report_flags(options)
    if options.tokens < 1 or options.types < 1:
        raise InputError(
            f"expected --tokens and --types of at least 1, got {options.tokens} and {options.types}"
        )
    result = measure(options.tokens, options.types, options.seed, options.folder)
    report(
        options,
        {**result, "environment": environment()},
        "\n".join(f"{name:<22} {value:>15,.1f}" for name, value in result.items()),
    )
    return 0


if __name__ == "__main__":
    from train.commands import run

    run(main)
