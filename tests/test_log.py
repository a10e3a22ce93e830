"""The display: a bar on a terminal, plain lines elsewhere, nothing on other ranks."""

import io
import math
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import pytest
from mpi import find_mpirun

from train.log import TrainingDisplay, duration, format_perplexity, progress, scaled

ROW = {"step": 10, "loss": 6.2345, "perplexity": 510.123, "tokens_per_second": 9812.4}
SCORE = {"split": "valid", "step": 10, "perplexity": 312.416, "loss": 5.74434, "scored_tokens": 217646}


def test_lines_come_every_interval_and_at_the_end():
    stream = io.StringIO()
    with progress(1000, "reading", "tokens", stream=stream, interval=0) as shown:
        shown.update(250)
        shown.update(750)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("reading: 250 of 1,000 tokens (25%), ")
    assert lines[1].startswith("reading: 1,000 of 1,000 tokens (100%), ")
    assert lines[1].endswith(", 0:00 left")


def test_lines_within_the_interval_are_left_out_but_for_the_last():
    stream = io.StringIO()
    with progress(None, "reading", "B", unit_scale=True, stream=stream, interval=60) as shown:
        for _ in range(5):
            shown.update(1_234_567)
        assert stream.getvalue() == ""
    assert stream.getvalue().startswith("reading: 6.17MB, ")
    assert stream.getvalue().count("\n") == 1
    assert "left" not in stream.getvalue()


def test_what_was_done_before_does_not_count_for_the_speed():
    stream = io.StringIO()
    with progress(10**9, "training", "steps", initial=10**9 - 1, stream=stream, interval=0) as shown:
        shown.update(0)
    assert ", 0 steps/s, " in stream.getvalue()


def test_ranks_other_than_0_say_nothing(capfd):
    with progress(3, "reading", enabled=False) as shown:
        shown.update(3)
        shown.message("text")
    with TrainingDisplay(10, enabled=False) as display:
        display.update(ROW)
        display.evaluation(SCORE)
    assert capfd.readouterr() == ("", "")


def test_a_stream_that_is_gone_does_not_end_the_work():
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError("the terminal is gone")

    with progress(3, "reading", stream=Gone(), interval=0) as shown:
        shown.update(3)
        shown.message("text")


def test_training_shows_loss_perplexity_speed_and_time_left():
    stream = io.StringIO()
    with TrainingDisplay(40, first_step=5, stream=stream, interval=0) as display:
        display.update(ROW)
        display.evaluation(SCORE)
        display.message("stopped early")
    first, second, third = stream.getvalue().splitlines()
    assert first.startswith("training: 10 of 40 steps (25%), loss 6.234, perplexity 510.1, 9,812 tokens/s, ")
    assert first.endswith("left")
    assert second == "valid after step 10: perplexity 312.42, loss 5.7443 over 217,646 tokens"
    assert third == "stopped early"


DISPLAY = """
from train.log import TrainingDisplay
import os
rank = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")))
with TrainingDisplay(40, enabled=rank == 0) as display:
    display.update({"step": 10, "loss": 6.2, "perplexity": 510, "tokens_per_second": 9812})
    display.message("a line of its own")
    display.update({"step": 40, "loss": 5.2, "perplexity": 180, "tokens_per_second": 9813})
"""


def on_a_terminal(command, rows=24, columns=80):
    """What a command prints on a pseudo-terminal of that size."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    printed = b""
    while select.select([ours], [], [], 30)[0]:
        try:
            printed += os.read(ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
    os.close(ours)
    assert process.wait(30) == 0, printed
    return printed.decode()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_bar_stands_on_the_terminal_also_behind_mpirun(ranks):
    launcher = [] if ranks == 1 else [find_mpirun(), "-np", str(ranks)]
    printed = on_a_terminal([*launcher, sys.executable, "-c", DISPLAY])
    assert "a line of its own\r\n" in printed
    assert "100%|█" in printed
    assert "40/40 [" in printed
    assert "loss 5.200, perplexity 180.0, 9,813 tokens/s]" in printed


def test_lines_go_to_a_terminal_without_a_size():
    printed = on_a_terminal([sys.executable, "-c", DISPLAY], rows=0, columns=0)
    assert "training: 40 of 40 steps (100%), loss 5.200" in printed


def test_lines_go_to_a_file_behind_mpirun_and_leave_what_is_in_it(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("a") as stream:
        subprocess.run([find_mpirun(), "-np", "2", sys.executable, "-c", DISPLAY], stderr=stream, check=True)
    assert log.read_text().startswith("before\na line of its own\ntraining: 40 of 40 steps")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.6, "1k"),
        (1234, "1.23k"),
        (45_600_000, "45.6M"),
        (2e15, "2000T"),
    ],
)
def test_scaled_numbers(number, text):
    assert scaled(number) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.056, "4.06"),
        (1234.5, "1,234.50"),
        (999999.4, "999,999.40"),
        (1e6, "1.0e+06"),
        (1.23e304, "1.2e+304"),
    ],
)
def test_perplexities(value, text):
    assert format_perplexity(value) == text
    assert format_perplexity(1234.56, decimals=1) == "1,234.6"
    assert format_perplexity(math.inf) == "inf"
