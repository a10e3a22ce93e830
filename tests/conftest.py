"""Fixtures that several test files use."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from host_runner import HostRunner, can_compile_for_host
from mpi import WITHOUT_PLOTS

from autograd import DeviceError
from autograd.backend import device_array_module
from autograd.kernels import host_kernels
from train import ending, python_docs
from train.files import atomic_write

MEMORY_DISK, ROOM = Path("/dev/shm"), 2 << 30


def pytest_configure(config):
    """Temporary folders lie in memory where there is room: runs write thousands of files and flush each."""
    if MEMORY_DISK.is_dir() and os.access(MEMORY_DISK, os.W_OK):
        disk = os.statvfs(MEMORY_DISK)
        if disk.f_bavail * disk.f_frsize >= ROOM and not disk.f_flag & os.ST_NOEXEC:  # kernels run from there
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY_DISK))


@pytest.fixture(scope="session", autouse=True)
def no_plots():
    """Runs end without a picture, in this process and in those that inherit its environment: drawing takes
    longer than they do.

    tests/test_plot.py draws, and test_wt103.py has a run of its own that does.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ending, "_plot", lambda folder: None)
        patch.setenv("PYTHONPATH", str(WITHOUT_PLOTS), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that all processes of the session share, for what takes long to make."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def host_runner(shared_folder):
    """Runs kernels on NumPy arrays; what it compiles, all processes of the session share."""
    if not can_compile_for_host():
        pytest.skip("kernels on the CPU need g++ 12 or newer")
    return HostRunner(shared_folder)


@pytest.fixture(scope="session")
def python_english(shared_folder):
    """What `python_docs.collect` returns; collected once by all processes of the session, or nearly so."""
    path = shared_folder / "python-docs.json"
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(python_docs.collect()), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """Where kernels run: on NumPy arrays behind the host shim, and on a GPU's if there is one.

    `device.array(x)` puts a NumPy array there, `device.numpy(x)` brings it back, `device.xp` is its module.
    """
    if request.param == "host":
        with host_kernels(request.getfixturevalue("host_runner")):
            yield Device(np)
        return
    try:
        yield Device(device_array_module("cuda"))
    except DeviceError as error:
        pytest.skip(f"no GPU: {error}")


class Device:
    def __init__(self, xp):
        self.xp = xp

    def array(self, values, dtype=None):
        return self.xp.array(values, dtype=dtype)

    def numpy(self, array):
        return array if self.xp is np else self.xp.asnumpy(array)


@pytest.fixture
def interruptible():
    """A shell's background job ignores SIGINT, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
