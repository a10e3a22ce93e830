"""`python -m train.generate RUN --prompt "…"`: text from a trained model, word by word."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from autograd.errors import InputError
from minilstm import LanguageModel
from train.corpus import EOS, UNK, Vocabulary
from train.parser import Parser


def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: list[int],
    num_words: int,
    temperature: float = 1.0,
    seed: int = 0,
    allow_unk: bool = False,
) -> Iterator[int]:
    """Word ids drawn one after the other, each from the model's distribution after all words before it.

    Args:
        model: trained.
        vocabulary: its words.
        prompt: ids fed in order first; `<eos>` is fed before them.
        num_words: how many to draw.
        temperature: log-probabilities are divided by it; 0 takes the likeliest word each time.
        seed: of the draws; the same one gives the same text.
        allow_unk: let `<unk>` be drawn.

    Returns:
        an iterator over the ids, drawn as it is asked.

    Raises:
        InputError: a temperature below 0.
    """
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature must be a number of at least 0; got {temperature}")
    barred = None if allow_unk else vocabulary.unk_id
    return _words(
        model, [vocabulary.eos_id, *prompt], num_words, temperature, np.random.default_rng(seed), barred
    )


def _words(
    model: LanguageModel,
    prompt: list[int],
    num_words: int,
    temperature: float,
    rng: np.random.Generator,
    barred: int | None,
) -> Iterator[int]:
    state = None
    for word in prompt:
        log_probs, state = model.next_log_probs(np.array([word]), state)
    for _ in range(num_words):
        word = _draw(log_probs[0].astype(np.float64), temperature, rng, barred)
        yield word
        log_probs, state = model.next_log_probs(np.array([word]), state)


def _draw(log_probs: np.ndarray, temperature: float, rng: np.random.Generator, barred: int | None) -> int:
    if barred is not None and len(log_probs) > 1:
        log_probs[barred] = -np.inf
    if temperature == 0:
        return int(log_probs.argmax())
    # Gumbel's trick: the largest of log p / temperature + noise is a draw from the tempered distribution.
    return int((log_probs / temperature + rng.gumbel(size=log_probs.shape)).argmax())


def as_text(word: str) -> str:
    """A word as it is printed: followed by a space, and `<eos>` as the end of its line."""
    return "\n" if word == EOS else word + " "


def main(argv: list[str] | None = None) -> int:
    """The command; prints prompt and text as they come."""
    from train.run_folder import BEST, LATEST, load_trained

    parser = Parser(prog="python -m train.generate", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="words to go on from, separated by spaces"
    )
    parser.add_argument("--words", type=int, default=60, metavar="N", help="words to draw; default 60")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="X", help="0: the likeliest word; default 1"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws; default 0")
    parser.add_argument("--allow-unk", action="store_true", help=f"let {UNK} be drawn")
    parser.add_argument("--checkpoint", choices=(BEST, LATEST), default=BEST, help="default: best")
    args = parser.parse_args(argv)
    if args.words < 1:
        raise InputError(f"--words: must be at least 1; got {args.words}")
    if args.seed < 0:
        raise InputError(f"--seed: must be at least 0; got {args.seed}")

    model, _, vocabulary, _ = load_trained(args.run, args.checkpoint)
    given = args.prompt.split()
    prompt, unknown = vocabulary.encode(given)
    if given and len(unknown) == len(given):
        raise InputError(
            f"--prompt: the model knows none of its words ({args.prompt}); use words of its text"
        )
    if unknown:
        print(f"not in the vocabulary, read as {UNK}: {' '.join(unknown)}", file=sys.stderr)
    drawn = generate(
        model, vocabulary, prompt.tolist(), args.words, args.temperature, args.seed, args.allow_unk
    )
    print("".join(map(as_text, given)), end="", flush=True)
    for word in drawn:
        print(as_text(vocabulary.words[word]), end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    from train.commands import run

    run(main)
