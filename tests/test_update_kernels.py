"""Norm and update by kernels are those of the NumPy optimizers, to rounding, step after step."""

import numpy as np
import pytest
from host_runner import KernelError
from kernel_examples import on, twin

from autograd import InputError
from autograd.kernels import KernelModule, host_kernels
from train import scale_kernels, update_kernels
from train.mixed_precision import Backoff, LogMax
from train.optimizers import NTASGD, SGD, Adam, clip_factor, global_norm
from train.scale_kernels import DeviceScaler
from train.update_kernels import NAMES, UpdateControls, norm_blocks

SIZES = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-12}


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    """1,024 of them are for real sizes; the shim would take seconds for them."""
    monkeypatch.setattr(update_kernels, "NORM_BLOCKS", 3)


def flat(size, dtype=np.float32, seed=0):
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(size) * 10.0 ** generator.integers(-3, 2, size)
    return values.astype(dtype)


# --- the norm ---


@pytest.mark.parametrize(("size", "dtype"), [(0, "float32"), (1, "float16"), (50_000, "float16"),
                                             (30_001, "float32"), (7777, "float64")])  # fmt: skip
def test_the_norm(device, size, dtype):
    x = flat(size, dtype)
    exact = np.linalg.norm(x.astype(np.float64))
    assert global_norm(on(device, x)) == pytest.approx(exact, rel=1e-6)
    if dtype != "float16":
        assert twin(global_norm, x) == pytest.approx(exact, rel=1e-6)
    controls = UpdateControls(on(device, x))
    controls.set(unscale=1 / 8)
    controls.measure(on(device, x))
    read = controls.read()
    assert read["norm"] == pytest.approx(exact / 8, rel=1e-6)
    assert read["largest"] == np.abs(x.astype(np.float64)).max(initial=0) / 8
    assert read["finite"] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20])
@pytest.mark.parametrize("place", [0, 9999, 19_999])
def test_what_is_not_finite_is_seen_wherever_it_stands(device, bad, place):
    x = flat(20_000)
    x[place] = bad
    controls = UpdateControls(on(device, x))
    controls.measure(on(device, x))
    assert controls.read()["finite"] == 0
    assert not np.isfinite(controls.read()["norm"])
    assert not np.isfinite(twin(global_norm, x))


def test_as_many_blocks_as_an_array_fills(monkeypatch):
    assert [norm_blocks(num_bytes) for num_bytes in (0, 4, 16_384, 16_385, 1 << 20)] == [1, 1, 1, 2, 3]
    monkeypatch.undo()
    assert [norm_blocks(num_bytes) for num_bytes in (1 << 20, 1 << 24, 1 << 30)] == [64, 1024, 1024]


def test_an_update_begins_by_how_the_one_before_ended(device):
    """And the largest element may be that of other gradients than the norm."""
    x, scale = on(device, flat(50, np.float16)), on(device, np.array([8.0, 3.0]))
    controls = UpdateControls(x)
    controls.begin(0.1, 0.2, 0.5, scale)
    controls.measure(x)
    first = controls.read()
    controls.measure(on(device, np.full(50, np.nan, np.float32)), keep_largest=True)
    controls.begin(0.3, 0.4, 0.0)
    second = controls.read()
    told = ("learning_rate", "unscale", "max_norm", "finite")
    assert [first[name] for name in told] == [0.1, 1 / 8, 0.5, 1]
    assert [second[name] for name in told] == [0.4, 1, 0, 0]
    assert second["largest"] == first["largest"] == np.abs(flat(50, np.float16)).max() / 8


# --- the loss scale ---


def scalers():
    return [Backoff(4.0, growth_steps=3), Backoff(2.0**24, growth_steps=1), LogMax(), LogMax(2.0)]


@pytest.mark.parametrize("index", range(4))
def test_the_next_scale_is_the_host_s(device, index):
    """Step after step, through overflows at the lowest scale and gradients of zero; no matter who counts."""
    host, followed = scalers()[index], scalers()[index]
    ours = DeviceScaler(followed, device.xp, parts=4)
    controls = UpdateControls(on(device, flat(3)))
    generator = np.random.default_rng(index)
    for step in range(60):
        finite = bool(generator.random() < (0.2 if step > 40 else 0.8))
        largest = 2.0 ** generator.normal(1, 3) * (step != 5)
        controls.set(finite=finite, largest=largest)
        host.update(finite, largest)
        ours.update(controls)
        ours.follow(np.array(device.numpy(ours.values)))
        assert vars(followed) == pytest.approx(vars(host), rel=1e-12)
        expected = [host.scale / 4, 1 / host.scale]
        np.testing.assert_allclose(device.numpy(ours.factors), expected, rtol=1e-7)
        if step == 20:
            ours.load()  # as after a checkpoint
    assert host.overflows_at_lowest > 0 or host.scale > 1
    assert [type(value) for value in vars(followed).values()] == [type(x) for x in vars(host).values()]


# --- the updates ---


def optimizers():
    ntasgd = {"nonmono": 1}
    return [
        (Adam, {}),
        (Adam, {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-3, "weight_decay": 0.1}),
        (SGD, {"weight_decay": 0.1}),
        (SGD, {"momentum": 0.9}),
        (NTASGD, ntasgd),
    ]


def steps(optimizer, gradients, **options):
    """Updates with other rates and scales; NT-ASGD begins to average in their midst."""
    for step, g in enumerate(gradients):
        optimizer.update(g, 0.1 / (step + 1), 0.5)
        optimizer.validated(float(step))
    return optimizer


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "options"), optimizers())
def test_updates_are_those_of_numpy(device, kind, options, dtype):
    p, gradients = flat(700, dtype), [flat(700, dtype, seed) for seed in range(1, 5)]
    exact = twin(steps, kind(p.copy(), **options), gradients)
    ours = steps(kind(on(device, p), **options), [on(device, g) for g in gradients])
    assert ours.t == exact.t == 4
    found, expected = ours.state(), exact.state()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(device.numpy(found[name]), value, rtol=1e-5, atol=1e-6, err_msg=name)
    tolerance = SIZES[np.dtype(dtype).name] * np.abs(exact.parameters).max()
    np.testing.assert_allclose(device.numpy(ours.parameters), exact.parameters, rtol=0, atol=tolerance)


@pytest.mark.parametrize("gradients_of", ["model", "masters"])
@pytest.mark.parametrize(("kind", "options"), [(Adam, {"weight_decay": 0.1}), (SGD, {"momentum": 0.9})])
def test_mixed_precision_in_one_pass(device, kind, options, gradients_of):
    """Unscaled, clipped, updated and rounded down, with nothing read back."""
    p, scale, max_norm = flat(700), 2.0**10, 3.0
    halves = [(flat(700, np.float32, seed) * 30).astype(np.float16) for seed in range(1, 4)]
    exact = kind(p.copy(), **options)
    for g in halves:
        g = g.astype(np.float32) / np.float32(scale)
        twin(exact.update, g, 0.1, clip_factor(twin(global_norm, g), max_norm))
    ours, copy = kind(on(device, p), **options), on(device, p.astype(np.float16))
    ours.controls.set(learning_rate=0.1, unscale=1 / scale, max_norm=max_norm)
    for g in halves:
        given = on(device, g if gradients_of == "model" else g.astype(np.float32))
        ours.controls.measure(given)
        ours.update_by_kernels(given, copy)
    assert ours.controls.read()["norm"] > max_norm
    masters = device.numpy(ours.parameters)
    np.testing.assert_allclose(masters, exact.parameters, rtol=0, atol=2e-6 * np.abs(p).max())
    np.testing.assert_array_equal(device.numpy(copy), masters.astype(np.float16))


@pytest.mark.parametrize(("kind", "options"), [(Adam, {}), (SGD, {"momentum": 0.9})])
def test_a_step_that_is_not_finite_changes_nothing(device, kind, options):
    p, g = flat(300), flat(300, seed=1)
    ours, copy = kind(on(device, p), **options), on(device, p.astype(np.float16))
    given = on(device, g)
    ours.controls.set(learning_rate=0.1)
    ours.controls.measure(given)
    ours.update_by_kernels(given, copy)
    before = [np.array(device.numpy(x)) for x in (ours.parameters, copy, *ours.state().values())]
    bad = on(device, np.where(np.arange(300) == 7, np.float32(np.nan), g))
    ours.controls.measure(bad)
    ours.update_by_kernels(bad, copy)
    after = [np.array(device.numpy(x)) for x in (ours.parameters, copy, *ours.state().values())]
    assert [x.tobytes() for x in before] == [x.tobytes() for x in after]
    assert ours.t == 1


def test_state_goes_on_to_equal_bits(device):
    p, gradients = flat(300), [on(device, flat(300, seed=seed)) for seed in range(4)]
    whole = steps(Adam(on(device, p)), gradients)
    first = Adam(on(device, p))
    for step in (0, 1):
        first.update(gradients[step], 0.1 / (step + 1), 0.5)
    second = Adam(on(device, device.numpy(first.parameters)))
    second.load_state({name: device.numpy(value) for name, value in first.state().items()})
    for step in (2, 3):
        second.update(gradients[step], 0.1 / (step + 1), 0.5)
    assert device.numpy(second.parameters).tobytes() == device.numpy(whole.parameters).tobytes()
    assert second.t == whole.t == 4


def test_an_optimizer_without_a_kernel_says_so(host_runner):
    class Other(Adam):
        update_by_kernels = Adam.__base__.update_by_kernels

    with host_kernels(host_runner), pytest.raises(InputError, match="Other has no kernel; use Adam"):
        Other(flat(3)).update(flat(3))


def test_the_source_has_the_same_numbers_in_the_same_order():
    source = KernelModule("train", "adam").source
    for place, name in enumerate(NAMES):
        assert f"#define {name.upper()} {place}\n" in source
    of_scale = KernelModule("train", "loss_scale").source
    for names in (*scale_kernels.NUMBERS.values(), NAMES):
        for place, name in enumerate(names):
            if names is not NAMES or name in ("largest", "finite"):
                assert f"#define {name.upper()} {place}\n" in of_scale


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        (
            "        __syncthreads();\n        if (thread < half) {",
            "        if (thread < half) {",
            "order of threads",
        ),
        ("    p[i] = p_i;", "    p[i + 1] = p_i;", "writes outside of p|order of threads"),
    ],
)
def test_planted_bugs_are_found(host_runner, monkeypatch, right, wrong, fault):
    source = KernelModule("train", "adam").source.partition('#line 1 "adam.cu"\n')[2]
    assert right in source
    monkeypatch.setattr(update_kernels, "UPDATE", KernelModule("train", "adam", source.replace(right, wrong)))
    optimizer, g = Adam(flat(300)), flat(300, seed=1)

    def step():
        optimizer.controls.measure(g)
        optimizer.update_by_kernels(g)

    with host_kernels(host_runner), pytest.raises(KernelError, match=fault):
        step()
