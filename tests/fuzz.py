"""Long fuzzing of every loader with atheris: python tests/fuzz.py --seconds 60 [TARGET …]

`make fuzz` calls it. Each target runs in a process of its own under a limit of address space; what it finds
stays in fuzz/TARGET/ as crash-… or oom-… and is run again by giving its path to --replay. Ends with status 1
if anything was found.
"""

import argparse
import importlib
import importlib.util
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PACKAGES = {"torch": "torch", "safetensors": "safetensors"}  # without which a target is left out
MEMORY = 1 << 30  # bytes beyond what the process has when it begins: far more than a sound file here needs

MEMORY_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None  # inputs are written there: no disk is worn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--out", type=Path, default=ROOT / "fuzz", help="where inputs and findings are kept")
    parser.add_argument("--replay", type=Path, help="run the one target on this one input, under no fuzzer")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.replay:
        return replay(args.targets[0], args.replay)
    if args.child:
        fuzz(args.targets[0], args.seconds, args.out / args.targets[0])
    from fuzz_targets import TARGETS

    names = [name for name in args.targets or TARGETS if importlib.util.find_spec(PACKAGES.get(name, "h5py"))]
    found = [name for name in names if not fuzz_in_child(name, args.seconds, args.out)]
    print(f"findings in: {', '.join(found)}" if found else "nothing was found")
    return bool(found)


def fuzz_in_child(name: str, seconds: int, out: Path) -> bool:
    """Fuzz one target and print a row of what came out; True if nothing was found."""
    command = [sys.executable, __file__, name, "--child", "--seconds", str(seconds), "--out", str(out)]
    # Removed here, for the fuzzer ends its process without a word to Python.
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY_DISK) as scratch:
        result = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "TMPDIR": scratch},
        )
    executions = re.findall(r"number_of_executed_units:\s*(\d+)|^#(\d+)", result.stdout, re.MULTILINE)
    verdict = "ok" if result.returncode == 0 else f"status {result.returncode}"
    print(
        f"{name:18} {max((int(a or b) for a, b in executions), default=0):>10,} executions  {verdict}",
        flush=True,
    )
    if result.returncode:
        (out / name / "log.txt").write_text(result.stdout)
        shown = [
            line for line in result.stdout.splitlines() if not line.startswith(("INFO", "#", "0x", "stat"))
        ]
        print("\n".join(line[:300] for line in shown[-25:]))
    return result.returncode == 0


def fuzz(name: str, seconds: int, folder: Path) -> None:
    """In the child: never returns."""
    import atheris

    with atheris.instrument_imports(include=["train", "autograd.errors", "zipfile", "json", "tomllib"]):
        from fuzz_targets import TARGETS, try_bytes

    target = TARGETS[name]
    corpus, scratch = folder / "corpus", Path(tempfile.mkdtemp())
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds(scratch)):
        (corpus / f"seed-{number}").write_bytes(seed)
        try_bytes(target, seed, scratch / "run")
    limit_memory()
    options = [f"-max_total_time={seconds}", "-max_len=20000", "-timeout=20", "-print_final_stats=1"]
    options += [f"-artifact_prefix={folder}/", "-rss_limit_mb=4096"]
    atheris.Setup(
        [sys.argv[0], str(corpus), *options],
        lambda content: bool(try_bytes(target, content, scratch / "run")) and None,
    )
    atheris.Fuzz()


def limit_memory() -> None:
    """Let this process have `MEMORY` more than it has now: what asks for more raises a MemoryError.

    What loaders import when they need it is imported before: torch, short of memory, never comes to an end.
    """
    for package in ("h5py", *PACKAGES.values()):
        if importlib.util.find_spec(package):
            importlib.import_module(package)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def replay(name: str, path: Path) -> int:
    from fuzz_targets import TARGETS, try_bytes

    with tempfile.TemporaryDirectory() as scratch:
        for seed in TARGETS[name].seeds(Path(scratch)):
            try_bytes(TARGETS[name], seed, Path(scratch) / "run")
        limit_memory()
        accepted = try_bytes(TARGETS[name], path.read_bytes(), Path(scratch) / "run")
    print("accepted" if accepted else "refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
