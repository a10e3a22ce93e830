"""`python -m train.wt103`: train the language model, on one process, or under mpirun on many."""

from __future__ import annotations

from contextlib import nullcontext

from autograd.backend import device_array_module
from autograd.errors import InputError
from minilstm.sampled_softmax import check_sorted_by_frequency
from train.batches import RankRows
from train.communicator import Communicator, get_communicator
from train.config import RunConfig, TrainConfig
from train.corpus import open_corpus
from train.flags import config_from_args
from train.memory import describe
from train.prepare import ensure_prepared
from train.run_folder import RunFolder
from train.training_run import TrainingRun


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    config, args = config_from_args(argv)
    communicator = get_communicator()
    train = config.train
    _refuse_what_cannot_run(train)
    rows = RankRows.of(communicator.rank, communicator.size, train.batch_size, train.accumulate)
    folder = RunFolder(args.run_dir)
    if not args.resume:  # a resumed run computes on with the epsilon that it began with
        config = config.with_epsilon_of_precision()
    if args.dry_run:
        return _dry_run(config, communicator)
    (folder.check_resumable if args.resume else folder.check_unused)()  # before anything that takes long
    path = ensure_prepared(train.data, None, communicator, min_count=train.min_count or None)
    with open_corpus(path) as corpus, folder.locked() if communicator.is_root else nullcontext():
        if config.model["softmax"] != "full":
            check_sorted_by_frequency(corpus.counts)
        config = config.with_vocab_size(len(corpus.vocabulary))
        run = TrainingRun(config, folder, corpus, communicator, rows, profile_steps=args.profile or 0)
        run.begin(resume=args.resume)
        run.train()
        run.finish()
    return 0


def _refuse_what_cannot_run(train: TrainConfig) -> None:
    device_array_module(train.device)  # raises where there is no GPU
    if train.device == "cuda":
        raise InputError("device cuda: this version trains on cpu alone; leave --device out")


def _dry_run(config: RunConfig, communicator: Communicator) -> int:
    """Print the model, its size and its memory; data is looked at only if vocab_size is not set."""
    vocab_size = config.model.get("vocab_size")
    if vocab_size is None:
        train = config.train
        path = ensure_prepared(train.data, None, communicator, min_count=train.min_count or None)
        with open_corpus(path) as corpus:
            vocab_size = len(corpus.vocabulary)
    if communicator.is_root:
        print(describe(config.model_config(vocab_size), config.train, communicator.size))
    return 0


if __name__ == "__main__":
    from train.commands import run

    run(main)
