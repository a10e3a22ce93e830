"""The communicator's collectives against NumPy, on real MPI ranks, and how ranks end together."""

import os
import time

import numpy as np
import pytest
from mpi import run_ranks

from autograd.errors import DtypeError
from train.communicator import SingleProcess, get_communicator

COLLECTIVES = """
import hashlib, json, sys
import numpy as np
import train.communicator as communicator

communicator.BUCKET_BYTES = 4096  # many buckets, the last one shorter
comm = communicator.get_communicator()
generators = [np.random.default_rng(rank) for rank in range(comm.size)]
ranks_values = [generator.standard_normal(5001).astype(np.float32) for generator in generators]

mean = ranks_values[comm.rank].copy()
comm.allreduce_mean_(mean)
expected = np.mean(np.stack(ranks_values), axis=0, dtype=np.float64)
assert mean.dtype == np.float32 and np.abs(mean - expected).max() < 1e-6, np.abs(mean - expected).max()
digest = np.frombuffer(hashlib.blake2b(mean.tobytes(), digest_size=4).digest(), np.uint32).astype(np.float64)
assert comm.allreduce_sum(digest) == comm.size * digest, "the ranks' means differ in bits"

for _ in range(10):  # what arrives first must not be added first
    again = ranks_values[comm.rank].copy()
    comm.allreduce_mean_(again)
    assert again.tobytes() == mean.tobytes(), "the same values have another mean"

assert comm.allreduce_sum([comm.rank, 1]).tolist() == [sum(range(comm.size)), comm.size]

matrix = np.full((70, 30), comm.rank, np.float64) + (np.arange(30) if comm.rank == 0 else 0)
comm.broadcast_(matrix)
assert (matrix == np.arange(30)).all()

sent = {"words": ["é", "\\n"], "none": None, "number": 0.1, "long": "x" * 10_000}
assert comm.broadcast_json(sent if comm.is_root else "not looked at") == sent
assert comm.broadcast_json(None) is None

lengths = [2000, 0, 1, 3][: comm.size]  # a rank may have no rows; the first needs several buckets
rows = np.full((lengths[comm.rank], 3), comm.rank, np.int32)
for axis, array in ((0, rows), (1, rows.T)):
    gathered = comm.gather_rows(array, axis)
    if comm.is_root:
        whole = np.repeat(np.arange(comm.size, dtype=np.int32), lengths)
        whole = np.stack([whole] * 3, axis=1 - axis)
        assert gathered.dtype == np.int32 and gathered.flags.c_contiguous and (gathered == whole).all()
    else:
        assert gathered is None

comm.barrier()
assert 0 <= comm.local_rank < comm.size and comm.is_root == (comm.rank == 0)
sys.stdout.write(f"rank {comm.rank} of {comm.size}\\n")  # one write: the ranks' lines must not mix
"""

WITH_RUN = """
import sys, time
from autograd.errors import InputError
from train.commands import run
from train.communicator import get_communicator

comm = get_communicator()
def main():
{body}
    comm.barrier()
run(main)
"""


def run_main(ranks, body, **options):
    """Run a main of this body on some ranks; the result and the seconds that it took."""
    code = WITH_RUN.format(body="".join(f"    {line}\n" for line in body.splitlines()))
    begin = time.monotonic()
    return run_ranks(ranks, code, **options), time.monotonic() - begin


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_collectives_agree_with_numpy_on_every_rank(ranks):
    result = run_ranks(ranks, COLLECTIVES)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.split("\n")) == ["", *(f"rank {rank} of {ranks}" for rank in range(ranks))]


def test_gather_rows_refuses_rows_of_unlike_types():
    code = "import numpy as np\nfrom train.communicator import get_communicator\n"
    code += "comm = get_communicator()\ncomm.gather_rows(np.zeros((2, 3), [np.int32, np.float32][comm.rank]))"
    result = run_ranks(2, code)
    assert result.returncode != 0
    assert "must be the same on all ranks" in result.stderr


@pytest.mark.parametrize(("ranks", "failing"), [(2, 0), (4, 3)])
def test_an_exception_on_one_rank_ends_all_with_its_traceback(ranks, failing):
    body = f"if comm.rank == {failing}:\n    raise RuntimeError('planted')"
    result, seconds = run_main(ranks, body)
    assert result.returncode == 1
    assert f"rank {failing} of {ranks}" in result.stderr
    assert "Traceback" in result.stderr
    assert "RuntimeError: planted" in result.stderr
    assert seconds < 10


def test_an_exception_outside_of_a_command_ends_all_ranks_too():
    code = "from train.communicator import get_communicator\ncomm = get_communicator()\n"
    code += "if comm.rank == 1: raise RuntimeError('planted')\ncomm.barrier()"
    result = run_ranks(2, code)
    assert result.returncode == 1
    assert "rank 1 of 2" in result.stderr
    assert "RuntimeError: planted" in result.stderr


def test_an_exception_that_all_ranks_share_is_printed_once():
    result, _ = run_main(4, "raise RuntimeError('planted')")
    assert result.returncode == 1
    assert result.stderr.count("RuntimeError: planted") == 1
    assert "rank 0 of 4" in result.stderr


@pytest.mark.parametrize("ranks", [2, 4])
def test_an_input_error_on_all_ranks_is_one_line(ranks):
    result, _ = run_main(ranks, "raise InputError('no such file: x')")
    assert (result.returncode, result.stderr, result.stdout) == (2, "error: no such file: x\n", "")


def test_an_input_error_on_one_rank_ends_all_and_names_it():
    result, seconds = run_main(4, "if comm.rank == 2: raise InputError('no such file: x')")
    assert result.returncode == 2
    assert result.stderr.startswith("error: rank 2 of 4 (")
    assert result.stderr.endswith("): no such file: x\n")
    assert seconds < 10


def test_sys_exit_on_one_rank_ends_all_with_its_status():
    result, seconds = run_main(2, "if comm.rank == 1: sys.exit(3)")
    assert result.returncode == 3
    assert seconds < 10


def test_a_good_end_on_all_ranks_is_status_0():
    result, _ = run_main(2, "sys.stdout.write('done\\n')")
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\ndone\n", "")


def test_many_ranks_on_few_cores_do_not_starve_each_other():
    """MPI's own busy waiting takes about a second for each of these."""
    code = "import numpy as np\nfrom train.communicator import get_communicator\n"
    code += "flat = np.ones(200_000, np.float32)\n"
    code += "for _ in range(50): get_communicator().allreduce_mean_(flat)"
    result = run_ranks(4, code, timeout=20)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux tells what is mapped")
def test_a_run_that_is_killed_leaves_no_shared_memory():
    code = "import sys\nfrom train.communicator import get_communicator\nget_communicator()\n"
    code += "lines = open('/proc/self/maps').read().splitlines()\n"
    code += (
        "assert not [line for line in lines if '/dev/shm/' in line and not line.endswith('(deleted)')], lines"
    )
    result = run_ranks(2, code)
    assert result.returncode == 0, result.stderr


WITHOUT_MPI4PY = "import sys\nsys.modules['mpi4py'] = None  # any import of it fails\n"


def test_a_process_alone_needs_no_mpi4py():
    result = run_ranks(1, WITHOUT_MPI4PY + COLLECTIVES)
    assert (result.returncode, result.stdout) == (0, "rank 0 of 1\n"), result.stderr


def test_a_launcher_without_mpi4py_is_an_input_error():
    code = WITHOUT_MPI4PY + "from train.commands import run\nrun(lambda: print('ran'))"
    result = run_ranks(1, code, env={"PMI_RANK": "0", "PMI_SIZE": "4"})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "error: started by an MPI launcher as rank 0 of 4, but mpi4py cannot be imported"
    )
    assert result.stderr.count("\n") == 1


def test_another_mpis_launcher_is_an_input_error():
    """Its ranks would each take themselves for the only one, and write over each other's files."""
    pytest.importorskip("mpi4py")
    code = "from train.commands import run\nrun(lambda: print('ran'))"
    result = run_ranks(1, code, env={"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"})
    assert (result.returncode, result.stdout) == (2, "")
    assert "mpi4py sees 1 ranks" in result.stderr


def test_a_process_alone_is_its_own_average():
    comm = SingleProcess()
    flat = np.array([1, 2, 3], np.float32)
    comm.allreduce_mean_(flat)
    assert flat.tolist() == [1, 2, 3]
    assert comm.broadcast_json({"pair": (1, 2)}) == {"pair": [1, 2]}  # as it would arrive on another rank
    gathered = comm.gather_rows(flat)
    assert gathered is not None
    assert gathered.tolist() == [1, 2, 3]
    assert not np.shares_memory(gathered, flat)


def test_gradients_of_a_wrong_kind_and_scattered_arrays_are_refused():
    comm = SingleProcess()
    for wrong in (np.zeros(3, np.float16), np.zeros(3, np.int32), np.zeros((2, 2), np.float32)):
        with pytest.raises(DtypeError, match="1-D float32"):
            comm.allreduce_mean_(wrong)
    with pytest.raises(ValueError, match="C-contiguous"):
        comm.broadcast_(np.zeros((4, 4))[:, 1])


def test_there_is_one_communicator_per_process():
    assert get_communicator() is get_communicator()
