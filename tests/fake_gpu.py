"""A GPU made of NumPy: arrays that refuse the host's, kernels by the shim, products by a fake cuBLAS."""

import sys
from contextlib import contextmanager

import host_runner as host_runner_module
import pytest
from fake_cublas import FakeCublas
from fake_cupy import FakeCupy

from autograd import backend
from autograd.cublas import with_signatures
from train.device import Gpu


@contextmanager
def fake_gpu(host_runner, **machine):
    """Context in which device cuda is there; gives `train.device.Gpu`."""
    cupy, cublas = FakeCupy(host_runner=host_runner, **machine), FakeCublas()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", cupy)
        # The kernels' own tests run them in three orders of their threads; this is about who launches them.
        patch.setattr(host_runner_module, "SCHEDULES", host_runner_module.SCHEDULES[:1])
        patch.setattr(backend, "load_library", lambda major: with_signatures(cublas.library))
        backend._cublas.cache_clear()
        gpu = Gpu(cupy, 0)
        gpu.cublas = cublas
        yield gpu
        backend._cublas.cache_clear()
