"""`python -m train.anatomy RUN "text"`: a page that shows the backward pass of a run's model on a sentence.

As `python -m minilstm.anatomy`, which trains a small model of its own: that one knows no runs, this one loads
them. Meant for small models: each shown number is moved six times, and the rest of the sentence read anew.
"""

from __future__ import annotations

from pathlib import Path

from autograd.command import Parser
from minilstm import anatomy
from train.communicator import get_communicator
from train.tokenizer import Tokenizer


def main(argv: list[str] | None = None) -> int:
    """The command. Of many ranks the root alone works."""
    from train.run_folder import BEST, LATEST, load_trained

    parser = Parser(
        prog="python -m train.anatomy", description=(__doc__ or "").partition(": ")[2].partition("\n")[0]
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    anatomy.add_flags(parser)
    parser.add_argument("--checkpoint", choices=(BEST, LATEST), default=BEST, help="default: best")
    args = parser.parse_args(argv)
    if not get_communicator().is_root:
        return 0
    anatomy.check_flags(args)
    model, _, vocabulary, facts = load_trained(args.run, args.checkpoint)
    words = Tokenizer(vocabulary).words(args.sentence)
    ids, _ = vocabulary.encode(words)
    sentence = anatomy.sentence_of(words, ids.tolist(), vocabulary.words, vocabulary.eos_id)
    about = f"The model of {args.run}, after {facts['position']['step']:,} updates."
    anatomy.write_page(args.out, model, sentence, vocabulary.words, about, args.units, anatomy.tell_share)
    anatomy.tell("")
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB): open it in a browser")
    return 0


if __name__ == "__main__":
    from train.commands import run

    run(main)
