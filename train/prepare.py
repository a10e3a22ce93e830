"""Turn text into token ids: `python -m train.prepare SOURCE` writes what `train/corpus.py` reads.

One pass over the text, in memory that depends on the vocabulary alone. Ids by falling frequency are known
only at the end, so words get provisional ids by first appearance, which one lookup table then turns into the
final ones on disk.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd.command import Parser
from autograd.errors import InputError
from train.communicator import Communicator, SingleProcess, get_communicator
from train.corpus import FORMAT, SPLITS, VERSION, joined, open_corpus, open_tokens_file, stored_facts
from train.files import atomic_write, exclusive_lock, made_folder, require_room
from train.hdf5 import LIBVER, NewFile, fixed
from train.sources import Source, find_source
from train.text import Text, file_text, whole_words
from train.word_ids import Ranking, WordIds

if TYPE_CHECKING:
    import h5py

_CHUNK = 1 << 16  # token ids in one chunk of the file
_BLOCK = 1 << 20  # token ids renumbered at a time
_MARGIN = 1 << 25  # bytes of disk left free: for the vocabulary, and for what others write meanwhile
_RULES = "words between white space, case kept, <eos> ends each line"


def default_data_dir() -> Path:
    """Where prepared files lie unless told otherwise: the environment's MINILSTM_DATA, else ./data."""
    return Path(os.environ.get("MINILSTM_DATA") or "data")


def prepare(
    source: str | os.PathLike,
    out: str | os.PathLike | None = None,
    comm: Communicator | None = None,
    *,
    min_count: int | None = None,
    data_dir: str | os.PathLike | None = None,
    force: bool = False,
) -> Path:
    """Write `source` as token ids to `out`, by default `prepared_name` in `data_dir`, and return that path.

    A file that was made from the same text in the same way is left as it is. With `comm` the root rank alone
    works; every rank returns the path, or raises what stopped the root.

    Args:
        source: wikitext-2, wikitext-103, python-docs, a folder in WikiText form or a text file.
        out: the file to write.
        comm: a communicator of `train/communicator.py`; None for a single process.
        min_count: words seen less often in the train split become `<unk>`; None for the source's own default.
        data_dir: where downloads and prepared files lie; None for `default_data_dir()`.
        force: overwrite `out` whatever it is.

    Raises:
        InputError: the source is missing or not text, or `out` is something else and `force` is not given.
    """
    if min_count is not None and min_count < 1:
        raise InputError(f"min_count: expected at least 1, got {min_count}")

    def work() -> Path:
        found, target, wanted = _find(source, out, data_dir, min_count)
        if force or not target.exists():
            return _write(target, found, wanted)
        if _is_made_from(target, found, wanted):
            return target
        raise InputError(
            f"{target}: is there already, made from other text or in another way; add --force or --out"
        )

    return _on_root(comm, work)


def ensure_prepared(
    source: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    comm: Communicator | None = None,
    *,
    min_count: int | None = None,
) -> Path:
    """The prepared file for `source`: itself, or `prepared_name` in `data_dir`, which is made if need be.

    Arguments and ranks are as in `prepare`.

    Raises:
        InputError: as `prepare` does; also when the file in the way is no prepared data set, or `source` is
            one that was made with another minimum count.
    """

    def work() -> Path:
        if Path(source).suffix in (".h5", ".hdf5"):
            _refuse_another_min_count(Path(source), min_count)
            return Path(source)
        found, target, wanted = _find(source, None, data_dir, min_count)
        if not target.exists():
            return _write(target, found, wanted)
        if _is_made_from(target, found, wanted):
            return target
        option = f" --min-count {min_count}" if min_count else ""
        raise InputError(
            f"{target}: is there already, made from other text or in another way; give --data {target} to "
            f"use it as it is, or make it anew: python -m train.prepare {source}{option} --force"
        )

    return _on_root(comm, work)


def _on_root(comm: Communicator | None, work: Callable[[], Path]) -> Path:
    """Run `work` on the root rank; all ranks return its path or raise its error: none waits for ever."""
    comm = comm or SingleProcess()
    outcome = None
    if comm.is_root:
        try:
            outcome = {"path": os.fspath(work())}
        except InputError as error:
            outcome = {"error": str(error)}
        except OSError as error:  # no permission, disk full
            outcome = {"error": f"{error.filename or 'preparing'}: {error.strerror or error}"}
    comm.barrier()  # the other ranks wait here, where waiting costs no core
    outcome = comm.broadcast_json(outcome)
    if "error" in outcome:
        raise InputError(outcome["error"])
    return Path(outcome["path"])


def prepared_name(source: Source, min_count: int) -> str:
    """<name>.h5, or <name>-min<N>.h5 for a minimum count that is not the source's own.

    So vocabularies of one text lie side by side, and none passes for the other.
    """
    return (
        f"{source.name}.h5" if min_count == source.default_min_count else f"{source.name}-min{min_count}.h5"
    )


def _find(
    source: str | os.PathLike,
    out: str | os.PathLike | None,
    data_dir: str | os.PathLike | None,
    min_count: int | None,
) -> tuple[Source, Path, int]:
    """The source, the path of its prepared file, and the minimum count."""
    folder = default_data_dir() if data_dir is None else Path(data_dir)
    found = find_source(source, folder)
    wanted = found.default_min_count if min_count is None else min_count
    target = folder / prepared_name(found, wanted) if out is None else Path(out)
    if target.is_dir():
        raise InputError(f"{target}: expected the name of a file to write, got a folder")
    if target.exists() and any(target.samefile(path) for path in found.files()):
        raise InputError(f"{target}: is the source itself; give another --out")
    return found, target, wanted


def _refuse_another_min_count(path: Path, min_count: int | None) -> None:
    recipe, _ = _stored_recipe(path)
    if min_count not in (None, recipe.get("min_count")):
        raise InputError(
            f"{path}: was prepared with minimum count {recipe.get('min_count')}, not {min_count}; "
            "give --data the text itself, or a file of it made by: "
            f"python -m train.prepare TEXT --min-count {min_count}"
        )


def _recipe(source: Source, min_count: int) -> dict[str, Any]:
    return {**source.recipe, "tokens": _RULES, "min_count": min_count}


def _stored_recipe(target: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Recipe and sources of a prepared file; an InputError if `target` is something else."""
    with open_tokens_file(target) as file:
        try:
            recipe, sources, _ = stored_facts(file)
        except InputError as error:
            raise InputError(f"{target}: {error}; make it anew: add --force") from None
        return recipe, sources


def _is_made_from(target: Path, source: Source, min_count: int) -> bool:
    """Would preparing `source` give `target`? Compares recipes, and checksums of the text on this disk."""
    recipe, sources = _stored_recipe(target)
    checksums = {entry["name"]: entry["sha256"] for entry in sources}
    return recipe == _recipe(source, min_count) and all(
        checksums.get(path.name) == file_text(path).sha256() for path in source.files()
    )


def _write(target: Path, source: Source, min_count: int) -> Path:
    """Prepare `target` from `source`: whole, or not at all."""
    import h5py

    with made_folder(target.parent), exclusive_lock(target):
        splits = source.splits()
        with (
            atomic_write(target) as temporary,
            NewFile(temporary) as kept_open,
            h5py.File(kept_open, "w", libver=LIBVER) as file,
        ):

            def check_room(num_bytes: int) -> None:
                kept_open.check()
                require_room(target.parent, num_bytes + _MARGIN)

            words = WordIds()
            sources = _write_provisional_ids(file, splits, words, check_room)
            ranking = words.rank(min_count)
            file["vocabulary"] = joined(ranking.words)
            file["counts"] = ranking.counts
            outside = {split: _renumber(file[split], ranking) for split in SPLITS}
            for name, value in (
                ("recipe", _recipe(source, min_count)),
                ("sources", sources),
                ("outside_vocabulary", outside),
            ):
                file.attrs[name] = fixed(json.dumps(value))
            file.attrs["format"] = fixed(FORMAT)
            file.attrs["version"] = VERSION
            file.attrs["complete"] = True
    return target


def _write_provisional_ids(
    file: "h5py.File", splits: dict[str, Text], words: WordIds, check_room: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Write each split with ids by first appearance, and return name, size and checksum of what was read."""
    from train.log import progress

    # By name: the splits of one file share its checksum.
    digests = {text.name: hashlib.sha256() for text in splits.values()}
    sizes = dict.fromkeys(digests, 0)
    total = sum(map(len, splits.values()))
    with progress(total, "preparing", "B", unit_scale=True) as bar:

        def blocks(text: Text) -> Iterator[bytes]:
            for block in text.blocks():
                digests[text.name].update(block)
                sizes[text.name] += len(block)
                bar.update(len(block))
                yield block

        for split, text in splits.items():
            tokens = file.create_dataset(split, (0,), np.int32, maxshape=(None,), chunks=(_CHUNK,))
            for piece in whole_words(text.name, blocks(text)):
                ids = words.encode(piece)
                check_room(ids.nbytes)
                if split == "train":
                    words.count(ids)
                end = tokens.shape[0]
                tokens.resize((end + len(ids),))
                tokens[end:] = ids
    return [{"name": name, "bytes": sizes[name], "sha256": digests[name].hexdigest()} for name in digests]


def _renumber(tokens: "h5py.Dataset", ranking: Ranking) -> int:
    """Turn provisional ids into final ones in place; returns how many tokens became `<unk>`."""
    outside = 0
    for start in range(0, tokens.shape[0], _BLOCK):
        ids = tokens[start : start + _BLOCK]
        outside += int(np.count_nonzero(ranking.outside[ids]))
        tokens[start : start + _BLOCK] = ranking.new_ids[ids]
    return outside


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = _parser().parse_args(argv)
    comm = get_communicator()
    path = prepare(
        options.source,
        options.out,
        comm,
        min_count=options.min_count,
        data_dir=options.data_dir,
        force=options.force,
    )
    if comm.is_root:
        _print_summary(path)
    return 0


def _print_summary(path: Path) -> None:
    with open_corpus(path) as corpus:
        print(path)
        for split in SPLITS:
            tokens, outside = corpus.num_tokens(split), corpus.outside_vocabulary[split]
            print(f"{split:<10} {tokens:>12,} tokens, {outside:,} ({outside / tokens:.2%}) became <unk>")
        print(f"vocabulary {len(corpus.vocabulary):>12,} words, minimum count {corpus.recipe['min_count']}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m train.prepare", description="Turn text into token ids (HDF5).")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="wikitext-2 or wikitext-103 (downloaded), python-docs (the English in Python's own library), "
        "a folder with wiki.{train,valid,test}.tokens or ptb.{train,valid,test}.txt, or a text file (split "
        "90/5/5 by lines)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write; default DATA_DIR/NAME.h5, or NAME-minN.h5 with another --min-count N",
    )
    parser.add_argument(
        "--min-count",
        type=int,
        metavar="N",
        help="words seen less than N times in the train split become <unk>; default 1 for WikiText and PTB, "
        "else 2; a run asks for it by --set min_count=N",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="default: $MINILSTM_DATA, else data")
    parser.add_argument("--force", action="store_true", help="overwrite FILE whatever it is")
    return parser


if __name__ == "__main__":
    from train.commands import run

    run(main)
