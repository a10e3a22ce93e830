"""`python -m train.generate RUN --prompt "…"`: text from a trained model, word by word."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from autograd.command import Parser
from autograd.errors import InputError
from minilstm import LanguageModel
from train.beam_search import check_length_penalty
from train.communicator import get_communicator
from train.continuation import MOST_ROWS, ROWS, Piece, generate_many, in_order, search_many
from train.corpus import EOS, UNK, Vocabulary
from train.files import read_text
from train.sampling import Sampling


def generate(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: list[int],
    num_words: int,
    temperature: float = 1.0,
    seed: int = 0,
    allow_unk: bool = False,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[int]:
    """Word ids drawn one after the other, each from the model's distribution after all words before it.

    Args:
        model: trained.
        vocabulary: its words.
        prompt: ids fed in order first; `<eos>` is fed before them.
        num_words: how many to draw.
        temperature, top_k, top_p: as in `Sampling`.
        seed: of the draws; the same one gives the same text.
        allow_unk: let `<unk>` be drawn.

    Returns:
        an iterator over the ids, drawn as it is asked.

    Raises:
        InputError: as `Sampling` does.
    """
    sampling = Sampling(temperature, top_k, top_p)
    pieces = generate_many(model, vocabulary, [prompt], num_words, sampling, seed, 1, allow_unk, batch_size=1)
    return (word for piece in pieces for word in piece.words)


class Prompt(NamedTuple):
    """A prompt as it was given and as the model reads it."""

    words: list[str]
    ids: list[int]
    unknown: list[str]  # words that the model reads as <unk>


def read_prompt(text: str, vocabulary: Vocabulary, where: str = "--prompt") -> Prompt:
    """Words between white space, the end of a line read as `<eos>`: as the training text was read.

    Raises:
        InputError: there are words in it and the model knows none of them; `where` names the place.
    """
    try:
        words = [word.decode() for word in text.replace("\n", f" {EOS} ").encode().split()]
    except UnicodeEncodeError:
        raise InputError(f"{where}: must be UTF-8; got {text!r}") from None
    ids, unknown = vocabulary.encode(words)
    if unknown and len(unknown) == len(words) - words.count(EOS):
        raise InputError(
            f"{where}: the model knows none of its words ({' '.join(unknown)}); use words of its text"
        )
    return Prompt(words, ids.tolist(), unknown)


def as_text(word: str) -> str:
    """A word as it is printed: followed by a space, and `<eos>` as the end of its line."""
    return "\n" if word == EOS else word + " "


def main(argv: list[str] | None = None) -> int:
    """The command; prints prompts and texts as they come. Of many ranks the root alone works."""
    from train.device import open_device
    from train.run_folder import load_trained

    args = _parser().parse_args(argv)
    if not get_communicator().is_root:
        return 0
    _check(args)
    sampling = _sampling(args)
    given = _given_prompts(args)
    device = open_device(args.device, "float32", None)
    model, _, vocabulary, facts = load_trained(args.run, args.checkpoint)
    model.move_to(device.xp)
    if args.num_beams and args.num_beams > len(vocabulary):
        raise InputError(
            f"--num-beams: must be at most {len(vocabulary)}, the words of the vocabulary; "
            f"got {args.num_beams}"
        )
    prompts = [read_prompt(text, vocabulary, where) for where, text in given]
    _report_unknown(given, prompts)
    ids = [prompt.ids for prompt in prompts]
    if args.num_beams:
        alpha = 1.0 if args.length_penalty is None else args.length_penalty
        pieces = search_many(
            model, vocabulary, ids, args.words, args.num_beams, alpha, args.allow_unk, args.until_eos
        )
    else:
        pieces = generate_many(
            model,
            vocabulary,
            ids,
            args.words,
            sampling,
            args.seed or 0,
            args.samples,
            args.allow_unk,
            args.until_eos,
            args.batch_size or ROWS,
        )
    if args.json:
        run = {"run": str(args.run), "step": facts["position"]["step"]}
        print(json.dumps(run | {"texts": _texts(pieces, prompts, args.samples, vocabulary)}))
    else:
        _print(in_order(pieces), prompts, args.samples, vocabulary)
    return 0


def _parser() -> Parser:
    from train.run_folder import BEST, LATEST

    parser = Parser(prog="python -m train.generate", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument("--checkpoint", choices=(BEST, LATEST), default=BEST, help="default: best")
    _add_texts(parser.add_argument_group("what to write"))
    _add_drawing(parser.add_argument_group("how words are drawn"))
    _add_search(parser.add_argument_group("or searched"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return parser


def _add_texts(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="words to go on from, separated by spaces; may be given many times",
    )
    group.add_argument(
        "--prompts", metavar="FILE", help="one prompt a line, empty lines left out; - reads standard input"
    )
    group.add_argument("--samples", type=int, default=1, metavar="N", help="texts for each prompt; default 1")
    group.add_argument("--words", type=int, default=60, metavar="N", help="words of a text; default 60")
    group.add_argument(
        "--until-eos", action="store_true", help=f"a text ends with its first {EOS}, the end of a line"
    )
    group.add_argument("--allow-unk", action="store_true", help=f"let {UNK} be written")


def _add_drawing(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--temperature", type=float, metavar="X", help="0: the likeliest word; default 1")
    group.add_argument("--greedy", action="store_true", help="the likeliest word each time")
    group.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest words")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="draw among the fewest words that reach probability P"
    )
    group.add_argument("--seed", type=int, metavar="N", help="of the draws; default 0")
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"texts written side by side; default {ROWS}; 1 is fastest for a single one",
    )


def _add_search(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--num-beams", type=int, metavar="K", help="the best text that a search over K at a time finds"
    )
    group.add_argument(
        "--length-penalty",
        type=float,
        metavar="A",
        help="with --until-eos: score texts by log P / length^A; default 1",
    )


_LOWEST = {"words": 1, "samples": 1, "num_beams": 1, "batch_size": 1, "top_k": 1, "seed": 0}


def _check(args: argparse.Namespace) -> None:
    """Refuse numbers out of range, and flags that contradict each other or would not act."""
    for name, least in _LOWEST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}: must be at least {least}; got {value}")
    if args.batch_size is not None and args.batch_size > MOST_ROWS:
        raise InputError(f"--batch-size: must be at most {MOST_ROWS:,}; got {args.batch_size}")
    _refuse_idle_flags(args)
    if args.length_penalty is not None:
        check_length_penalty(args.length_penalty)


def _refuse_idle_flags(args: argparse.Namespace) -> None:
    """Raise an InputError for a flag that the way in which words are chosen does not look at."""
    drawing = {
        "--temperature": args.temperature is not None,
        "--greedy": args.greedy,
        "--top-k": args.top_k is not None,
        "--top-p": args.top_p is not None,
        "--samples": args.samples > 1,
        "--seed": args.seed is not None,
    }
    given = [flag for flag, is_given in drawing.items() if is_given]
    if args.num_beams and given:
        raise InputError(f"--num-beams: searches for one text and draws none; leave {given[0]} out")
    if args.num_beams and args.batch_size is not None:
        raise InputError("--num-beams: searches for one text at a time; leave --batch-size out")
    if args.samples > 1 and args.temperature == 0:
        raise InputError("--samples: with --temperature 0 all of them are the same; leave one of the two out")
    greedy = "--greedy" if args.greedy else "--temperature 0" if args.temperature == 0 else None
    others = [flag for flag in given if flag != (greedy or "").partition(" ")[0]]
    if greedy and others:
        raise InputError(f"{greedy}: takes the likeliest word each time; leave {others[0]} out")
    if args.length_penalty is not None and not args.num_beams:
        raise InputError("--length-penalty: is of beam search; add --num-beams K")
    if args.length_penalty is not None and not args.until_eos:
        raise InputError("--length-penalty: acts with --until-eos alone, without it texts are equally long")


def _sampling(args: argparse.Namespace) -> Sampling:
    temperature = 1.0 if args.temperature is None else args.temperature
    top_p = 1.0 if args.top_p is None else args.top_p
    return Sampling(0.0 if args.greedy else temperature, args.top_k or 0, top_p)


def _given_prompts(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(where it was given, text) of every prompt; one empty prompt if there is none."""
    given = [("--prompt", text) for text in args.prompt or []]
    if args.prompts is not None:
        lines = read_text(args.prompts).split("\n")
        given += [(f"{args.prompts}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
        if not given:
            raise InputError(f"{args.prompts}: must hold one prompt a line; it holds none")
    return given or [("--prompt", "")]


def _report_unknown(given: list[tuple[str, str]], prompts: list[Prompt]) -> None:
    for number, ((where, _), prompt) in enumerate(zip(given, prompts, strict=True), 1):
        if prompt.unknown:
            place = f"{where}: " if where != "--prompt" else f"prompt {number}: " if len(given) > 1 else ""
            print(f"{place}not in the vocabulary, read as {UNK}: {' '.join(prompt.unknown)}", file=sys.stderr)


def _print(pieces: Iterable[Piece], prompts: list[Prompt], num_samples: int, vocabulary: Vocabulary) -> None:
    """Every text after its prompt, as it comes; several are told apart by a line with their number."""
    begun, total = -1, len(prompts) * num_samples
    for piece in pieces:
        if piece.text != begun:
            begun = piece.text
            if total > 1:
                print(f"--- {begun + 1}/{total} ---")
            print("".join(map(as_text, prompts[begun // num_samples].words)), end="", flush=True)
        words = [vocabulary.words[word] for word in piece.words]
        print("".join(map(as_text, words)), end="", flush=True)
        if piece.is_last and words[-1] != EOS:
            print(flush=True)


def _texts(
    pieces: Iterable[Piece], prompts: list[Prompt], num_samples: int, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """What --json tells of every text; `words` and `log_prob` (nats) are without the prompt."""
    texts: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        prompt = prompts[piece.text // num_samples]
        facts = {"prompt": prompt.words, "unknown": prompt.unknown, "sample": piece.text % num_samples}
        text = texts.setdefault(piece.text, {**facts, "words": [], "log_prob": 0.0})
        text["words"] += [vocabulary.words[word] for word in piece.words]
        text["log_prob"] += piece.log_prob
    for text in texts.values():
        text["text"] = "".join(map(as_text, text["prompt"] + text["words"])).rstrip(" ")
    return [texts[number] for number in sorted(texts)]


if __name__ == "__main__":
    from train.commands import run

    run(main)
