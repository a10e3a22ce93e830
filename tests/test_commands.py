"""How a command ends: its exit status and what it leaves on stderr."""

import os
import signal
import time

from mpi import kill, run_ranks, start_ranks

PREFACE = (
    "import os, signal, sys, time\nfrom autograd.errors import InputError\nfrom train.commands import run\n"
)


def run_main(body):
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return run_ranks(1, f"{PREFACE}def main():\n{lines}run(main)")


def test_a_good_end_passes_the_status_on():
    assert run_main("return None").returncode == 0
    assert run_main("return 0").returncode == 0
    assert run_main("return 7").returncode == 7


def test_an_input_error_is_one_line_and_status_2():
    result = run_main("raise InputError('expected x,\\n got y')")
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "error: expected x,  got y\n")


def test_system_exit_keeps_its_meaning():
    assert run_main("sys.exit()").returncode == 0
    assert run_main("sys.exit(2)").returncode == 2
    result = run_main("sys.exit('in words')")
    assert (result.returncode, result.stderr) == (1, "in words\n")


def test_any_other_exception_is_a_traceback_and_status_1():
    result = run_main("raise RuntimeError('planted')")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("RuntimeError: planted\n")


def test_an_interrupt_is_status_130_without_a_traceback():
    # A process started in the background of a script ignores the signal, and so do its children.
    restore = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    result = run_main(f"{restore}\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)")
    assert (result.returncode, result.stderr) == (130, "")


def test_a_reader_that_goes_away_is_no_traceback():
    process = start_ranks(1, f"{PREFACE}def main():\n    while True: print('line')\nrun(main)")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(30) == 128 + signal.SIGPIPE


def test_an_interrupt_of_mpirun_ends_all_ranks():
    process = start_ranks(
        2,
        f"{PREFACE}def main():\n"
        "    sys.stdout.write(f'{os.getpid()}\\n')\n"  # one write: the ranks' lines must not mix
        "    sys.stdout.flush()\n"
        "    time.sleep(60)\n"
        "run(main)",
    )
    assert process.stdout is not None
    try:
        ranks = [int(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    finally:
        kill(process)
    assert process.returncode != 0
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{rank}") for rank in ranks):
        assert time.monotonic() < deadline, "a rank outlived its launcher"
        time.sleep(0.05)


def test_too_little_memory_is_one_line_with_advice_and_status_2():
    result = run_main("import numpy\nnumpy.ones((1 << 30, 1 << 24))")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: not enough memory (Unable to allocate 128. PiB")
    assert result.stderr.endswith("; ask for less at a time: a smaller batch, window or number of beams\n")
    assert run_main("raise MemoryError").stderr.startswith("error: not enough memory; ask for less")
