"""Kernels against their twins, for the tests of both."""

import numpy as np

from autograd.kernels import host_kernels

TOLERANCES = {"float16": 1e-3, "float32": 2e-6, "float64": 1e-13}
"""Of the largest element: what is stored in the dtype is rounded once more than what it is compared with."""


def twin(function, *args, **options):
    """What a function gives on NumPy's arrays without kernels."""
    with host_kernels(None):
        return function(*args, **options)


def on(device, value):
    """An array put on the device; anything else as it is."""
    return device.array(value) if isinstance(value, np.ndarray) else value


def assert_near(ours, exact, tolerance, name=""):
    """Within the tolerance of the largest finite element; what is not finite is the same."""
    exact = np.asarray(exact, np.float64)
    scale = max(np.abs(exact[np.isfinite(exact)]).max(initial=0), 1e-30)
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), exact, rtol=0, atol=tolerance * scale, err_msg=name
    )
