"""`python -m train.wt103`: train the language model, on one process, or under mpirun on many.

What computes is imported once the flags are read: `--help`, and a wrong flag, need neither NumPy nor a model.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from train.flags import config_from_args

if TYPE_CHECKING:
    from argparse import Namespace

    from train.config import RunConfig


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    config, args = config_from_args(argv)
    if not args.resume:  # a resumed run computes on with the epsilon that it began with
        config = config.with_epsilon_of_precision()
    return _dry_run(config) if args.dry_run else _train(config, args)


def _train(config: RunConfig, args: Namespace) -> int:
    from minilstm.sampled_softmax import check_sorted_by_frequency
    from train.batches import RankRows
    from train.communicator import get_communicator
    from train.corpus import open_corpus
    from train.device import open_device
    from train.prepare import ensure_prepared
    from train.run_folder import RunFolder
    from train.threads import launcher
    from train.training_run import TrainingRun

    communicator = get_communicator()
    train = config.train
    rows = RankRows.of(communicator.rank, communicator.size, train.batch_size, train.accumulate)
    folder = RunFolder(args.run_dir)
    device = open_device(train.device, train.precision, launcher(), train.share_gpus)
    (folder.check_resumable if args.resume else folder.check_unused)()  # before anything that takes long
    path = ensure_prepared(train.data, None, communicator, min_count=train.min_count or None)
    with open_corpus(path) as corpus, folder.locked() if communicator.is_root else nullcontext():
        if config.model["softmax"] != "full":
            check_sorted_by_frequency(corpus.counts)
        config = config.with_vocab_size(len(corpus.vocabulary))
        run = TrainingRun(config, folder, corpus, communicator, rows, args.profile or 0, device)
        run.begin(resume=args.resume)
        with run.watch:
            run.train()
            run.finish()
    return 0


def _dry_run(config: RunConfig) -> int:
    """Print the model, its size and its memory; data is looked at only if vocab_size is not set."""
    from train.batches import RankRows
    from train.communicator import get_communicator
    from train.corpus import open_corpus
    from train.memory import describe
    from train.prepare import ensure_prepared

    communicator = get_communicator()
    train = config.train
    RankRows.of(communicator.rank, communicator.size, train.batch_size, train.accumulate)  # or refused here
    vocab_size = config.model.get("vocab_size")
    if vocab_size is None:
        path = ensure_prepared(train.data, None, communicator, min_count=train.min_count or None)
        with open_corpus(path) as corpus:
            vocab_size = len(corpus.vocabulary)
    if communicator.is_root:
        print(describe(config.model_config(vocab_size), train, communicator.size))
    return 0


if __name__ == "__main__":
    from train.commands import run

    run(main)
