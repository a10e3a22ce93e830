"""How gradients travel: equal bits whenever a bucket sets out, on real ranks; GPUs are made up."""

import random
from pathlib import Path

import numpy as np
import pytest
from mpi import run_ranks

from train.exchange import Exchange, MeanOfOne, OverlappedMean

IN_TESTS = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"


class Recorder(Exchange):
    """Averages with an imaginary rank that has only zeros, and writes down what happens."""

    def __init__(self, at_once=2, done=False):
        self.at_once, self.done, self.log, self.most, self.under_way = at_once, done, [], 0, 0

    def start(self, bucket):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.log.append(("start", int(bucket[0])))
        return int(bucket[0])

    def is_done(self, ticket):
        return self.done

    def finish(self, ticket, bucket):
        assert int(bucket[0]) == ticket
        self.under_way -= 1
        self.log.append(("finish", ticket))
        bucket /= 2


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_every_element_is_averaged_once_in_whatever_order_parts_become_whole(seed, done):
    flat = np.arange(100, 203, dtype=np.float64)
    exchange = Recorder(done=done)
    mean = OverlappedMean(exchange, flat, bucket_bytes=10 * flat.itemsize)
    edges = [0, 3, 3, 25, 26, 30, 71, 103]
    parts = [range(*pair) for pair in zip(edges[:-1], edges[1:], strict=True)]
    random.Random(seed).shuffle(parts)
    for part in parts[: seed + 2]:  # the others are never told of
        mean.completed(part)
    mean.finish()
    assert flat.tolist() == [value / 2 for value in range(100, 203)]
    assert exchange.most <= 2
    assert [number for what, number in exchange.log if what == "start"] == [
        number for what, number in exchange.log if what == "finish"
    ]


def test_a_bucket_sets_out_when_its_last_part_is_whole_and_not_before():
    exchange = Recorder()
    mean = OverlappedMean(exchange, np.arange(30.0), bucket_bytes=80)
    mean.completed(range(15, 30))
    assert exchange.log == [("start", 20)]
    mean.completed(range(0, 9))
    assert exchange.log == [("start", 20)]
    mean.completed(range(9, 15))
    assert exchange.log == [("start", 20), ("start", 0)]  # and 10 waits: no more than two at a time
    mean.finish()
    assert exchange.log[2:] == [("finish", 20), ("start", 10), ("finish", 0), ("finish", 10)]


def test_one_rank_sends_nothing():
    mean = MeanOfOne()
    mean.completed(range(3))
    mean.finish()


ON_THE_HOST = """
import numpy as np
import train.communicator as communicator
from train.device import Host

communicator.BUCKET_BYTES = 4096
comm = communicator.get_communicator()
values = [np.random.default_rng(rank).standard_normal(50_001).astype(np.float32) for rank in range(comm.size)]
plain, overlapped, half = (values[comm.rank].copy() for _ in range(3))
comm.allreduce_mean_(plain)
exact = np.mean(np.stack(values), axis=0, dtype=np.float64)
assert np.abs(plain - exact).max() < 1e-6

mean = comm.begin_mean(overlapped)
for part in (range(40_000, 50_001), range(1_000, 40_000)):  # the first thousand are not told of
    mean.completed(part)
mean.finish()
assert overlapped.tobytes() == plain.tobytes(), "overlapping changes bits"

assert comm.use_device(Host()) is None
assert comm.use_device(Host(), half=True) == "gradients: MPI, float16, divided before it is summed"
comm.allreduce_mean_(half)
assert 1e-6 < np.abs(half - exact).max() < 4e-3, np.abs(half - exact).max()
digest = [int.from_bytes(half.tobytes()[k::4001], "little") % 65_521 for k in range(4)]
assert (comm.allreduce_sum(digest) == comm.size * np.array(digest)).all(), "the ranks' means differ in bits"
large = np.full(10, 60_000, np.float32)  # their sum is beyond float16
comm.allreduce_mean_(large)
assert np.abs(large - 60_000).max() < 100
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_overlapping_changes_no_bit_and_float16_rounds(ranks):
    result = run_ranks(ranks, ON_THE_HOST)
    assert result.returncode == 0, result.stderr


ON_GPUS = (
    IN_TESTS
    + """
import ctypes
from types import SimpleNamespace
import numpy as np
from fake_cupy import FakeCupy
import train.communicator as communicator
from train.device import Gpu

comm = communicator.get_communicator()
case, nccl_is_there, uuids, mpi_reads_gpus, half, expected = CASE
cupy = sys.modules["cupy"] = FakeCupy(devices=2, uuids=uuids)
gpu = Gpu(cupy, comm.rank)
MPI = comm._mpi


class Nccl:  # its messages go by MPI
    NCCL_FLOAT16, NCCL_FLOAT32, NCCL_SUM = 6, 7, 0
    get_unique_id = staticmethod(lambda: tuple(range(comm.rank, 128 + comm.rank)))

    class NcclCommunicator:
        def __init__(self, size, unique_id, rank):
            assert (size, rank, unique_id) == (comm.size, comm.rank, tuple(range(128)))  # the root's

        def allReduce(self, source, target, count, kind, operation, stream):
            assert source == target and operation == 0 and stream != gpu.stream.ptr
            dtype = {6: np.float16, 7: np.float32}[kind]
            memory = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(source)
            values = np.frombuffer(memory, dtype)
            total = values.astype(np.float32)
            comm._world.Allreduce(MPI.IN_PLACE, total)
            values[...] = total


communicator.load_nccl = lambda: (Nccl, "NCCL 2.27.7") if nccl_is_there else (None, "NCCL is not installed")
comm._mpi_reads_gpus = lambda: mpi_reads_gpus
path = comm.use_device(gpu, half)
assert path == expected, path
communicator.BUCKET_BYTES = 4096
values = [np.random.default_rng(rank).standard_normal(5_001).astype(np.float32) for rank in range(2)]
flat = cupy.asarray(values[comm.rank].copy())
mean = comm.begin_mean(flat)
mean.completed(range(3_000, 5_001))
mean.finish()
exact = np.mean(np.stack(values), axis=0, dtype=np.float64)
error = np.abs(flat.get() - exact).max()
assert (1e-6 < error < 4e-3) if half else error < 1e-6, error
"""
)
TWO, ONE = [b"a" * 16, b"b" * 16], [b"a" * 16, b"a" * 16]
HALF = "float16, divided before it is summed"
PINNED = "gradients: MPI through pinned host memory, in pieces of 16 MB "
CASES = [
    ("nccl", True, TWO, False, False, "gradients: NCCL 2.27.7, GPU to GPU; float32"),
    ("nccl half", True, TWO, False, True, f"gradients: NCCL 2.27.7, GPU to GPU; {HALF}"),
    (
        "one gpu", True, ONE, False, False,
        PINNED + "(NCCL takes one rank a GPU, and 2 ranks share 1; MPI is not CUDA-aware); float32",
    ),
    (
        "cuda-aware", False, TWO, True, False,
        "gradients: CUDA-aware MPI, GPU to GPU (NCCL is not installed); float32",
    ),
    (
        "staging, half", False, TWO, True, True,
        PINNED + f"(NCCL is not installed; MPI knows no float16); {HALF}",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_the_path_that_is_there_is_taken_and_named(case):
    result = run_ranks(2, f"CASE = {case!r}\n{ON_GPUS}")
    assert result.returncode == 0, result.stderr


def test_mpi_is_asked_and_not_tried_whether_it_reads_gpus():
    code = "from train.communicator import get_communicator\ncomm = get_communicator()\n"
    code += "assert comm._mpi_reads_gpus() is False"  # the MPI of the tests is built without CUDA
    result = run_ranks(2, code)
    assert result.returncode == 0, result.stderr


A_STEP = """
import numpy as np
import train.communicator as communicator
from minilstm import LanguageModel, MaskStream, ModelConfig
from train.optimizers import SGD, clip_factor, global_norm
from train.step import TrainingStep

communicator.BUCKET_BYTES = 1024
comm = communicator.get_communicator()
config = ModelConfig(40, 8, 16, 3, recurrent_weight_keep_prob=0.7, encoder_last_output_keep_prob=0.5)
text = np.random.default_rng(0).integers(0, 40, (8, 4 * comm.size))[:, 4 * comm.rank :][:, :4]
inputs, targets, masks = text[:-1], text[1:], MaskStream(1, 0, 4 * comm.rank)

model = LanguageModel(config)
step = TrainingStep(model, SGD(model.flat_parameters), comm, 0.1, accumulate=2)
exchange, finished, early = comm._exchange, [], []
start, gradients = exchange.start, type(model).flat_gradients
exchange.start = lambda bucket: (early.append(not finished), start(bucket))[1]
type(model).flat_gradients = property(lambda m: (finished.append(1), gradients.fget(m))[1])
loss = step(inputs, targets, None, masks, 0.5).loss
assert sum(early) >= exchange.at_once, early  # these set out while the backward pass went on
exchange.start, type(model).flat_gradients = start, gradients

other = LanguageModel(config)
for rows in (slice(0, 2), slice(2, 4)):
    objective = other.objective(inputs[:, rows], targets[:, rows], None, masks.for_rows_from(rows.start))
    (objective.objective * 0.5).backward()
mean = other.flat_gradients
comm.allreduce_mean_(mean)
SGD(other.flat_parameters).update(mean, 0.5, clip_factor(global_norm(mean), 0.1))
assert other.flat_parameters.tobytes() == model.flat_parameters.tobytes()
assert not (other.flat_parameters == LanguageModel(config).flat_parameters).all()
"""


def test_a_step_whose_gradients_travel_during_the_backward_pass_has_equal_bits():
    result = run_ranks(2, A_STEP)
    assert result.returncode == 0, result.stderr
