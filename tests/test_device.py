"""Which GPU a rank gets, and what it is told when it gets none: on a CuPy that makes GPUs up."""

import re
import sys

import numpy as np
import pytest
from fake_cupy import FakeCupy

from autograd.backend import device_array_module
from autograd.errors import DeviceError
from train.device import open_device
from train.threads import Launch


def opened(cupy, precision="float32", place=None, **options):
    return open_device("cuda", precision, place, array_module=cupy, **options)


def test_the_host_copies_nothing():
    device, array = open_device("cpu", "mixed", Launch(1, 2, 1, 2)), np.ones(3)
    assert not device.is_gpu
    assert device.xp is np
    assert device.to_device(array) is array
    assert device.to_host(array) is array
    assert device.memory() is None


@pytest.mark.parametrize("local_rank", range(4))
def test_a_rank_takes_the_gpu_of_its_number_on_the_node(local_rank):
    cupy = FakeCupy(devices=4)
    device = opened(cupy, place=Launch(4 + local_rank, 8, local_rank, 4))
    assert (device.index, cupy.used_device) == (local_rank, local_rank)
    assert device.stream.non_blocking  # else it could not be captured
    assert cupy.cuda.get_current_stream() is device.stream
    assert device.name == "Fake"


def test_a_process_alone_takes_the_first():
    assert opened(FakeCupy(devices=2)).index == 0


def test_ranks_share_gpus_only_when_told_so():
    place = Launch(3, 4, 3, 4)
    with pytest.raises(DeviceError, match=r"this node has 2 GPUs for its 4 ranks; start 2 a node, or --set"):
        opened(FakeCupy(devices=2), place=place)
    assert opened(FakeCupy(devices=2), place=place, share_gpus=True).index == 1


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"driver": 0}, "needs an NVIDIA driver; none is installed here"),
        (
            {"driver": 12040},
            "the driver is for CUDA 12.4 at most, and this CuPy needs 13.0; bring the driver",
        ),
        ({"devices": 0}, "needs a GPU; none was found (is CUDA_VISIBLE_DEVICES set?)"),
    ],
)
def test_no_gpu_is_told_with_its_reason(monkeypatch, machine, message):
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy(**machine))
    with pytest.raises(DeviceError, match=re.escape(message)) as told:
        device_array_module("cuda")
    assert "\n" not in str(told.value)


def test_no_cupy_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"pip install cupy-cuda13x"):
        device_array_module("cuda")


def test_a_working_gpu_is_found(monkeypatch):
    cupy = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert device_array_module("cuda") is cupy


def test_a_gpu_that_the_cuda_version_has_left_behind():
    with pytest.raises(
        DeviceError, match="compute capability 7.0, and CUDA 13 begins at 7.5; pip install cupy-c"
    ):
        opened(FakeCupy(capability="70"))
    assert opened(FakeCupy(capability="70", driver=12040, runtime=12040), "mixed").capability == 70


def test_mixed_precision_needs_tensor_cores():
    old = {"capability": "61", "driver": 12040, "runtime": 12040}
    with pytest.raises(DeviceError, match="Fake has 6.1; leave --precision out"):
        opened(FakeCupy(**old), "mixed")
    assert opened(FakeCupy(**old)).capability == 61
