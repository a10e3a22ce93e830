"""Optimizers against their textbook formulas and against PyTorch; the same bits for any number of threads."""

import contextlib
import tracemalloc

import numpy as np
import pytest

from autograd.errors import InputError
from train.optimizers import (
    NTASGD,
    SGD,
    Adam,
    Optimizer,
    add_scaled,
    clip_factor,
    for_each_piece,
    global_norm,
)

PIECE = 1 << 14  # a shorter one than the optimizers': what is tested does not depend on how long it is
SIZE = 2 * PIECE + 777  # two whole pieces and a part of one
STEPS = 7


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr("train.optimizers.PIECE", PIECE)


def example(dtype=np.float32, size=SIZE):
    """Parameters and one array of gradients per step, over many orders of magnitude, some exactly 0."""
    generator = np.random.default_rng(0)
    parameters = generator.standard_normal(size).astype(dtype)
    gradients = generator.standard_normal((STEPS, size)) * 10.0 ** generator.integers(-6, 3, size)
    gradients[:, ::10] = 0
    return parameters, gradients.astype(dtype)


def rate(step):
    return 0.01 / (step + 1)


def textbook_adam(p, gradients, scale, weight_decay=0.0, beta1=0.9, beta2=0.999, epsilon=1e-8):
    p = p.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients.astype(np.float64) * scale, start=1):
        lr = rate(t - 1)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        p = p * (1 - lr * weight_decay) - lr * m_hat / (np.sqrt(v_hat) + epsilon)
    return p


def textbook_sgd(p, gradients, scale, weight_decay=0.0, momentum=0.0):
    p = p.astype(np.float64)
    b = np.zeros_like(p)
    for step, g in enumerate(gradients.astype(np.float64) * scale):
        b = momentum * b + g
        p = p * (1 - rate(step) * weight_decay) - rate(step) * b
    return p


def run(optimizer, gradients, scale=1.0, first=0):
    for step, g in enumerate(gradients, start=first):
        optimizer.update(g, rate(step), scale)
    return optimizer.parameters


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-13)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(
    ("kind", "textbook", "options"),
    [(Adam, textbook_adam, {}), (Adam, textbook_adam, {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3}),
     (SGD, textbook_sgd, {}), (SGD, textbook_sgd, {"momentum": 0.9})],
)  # fmt: skip
def test_updates_follow_the_textbook(kind, textbook, options, weight_decay, dtype, tolerance):
    parameters, gradients = example(dtype)
    untouched = gradients.copy()
    scale = 1 / 64  # a power of two, as exact in the textbook as in float32
    expected = textbook(parameters, gradients, scale, weight_decay, **options)
    optimizer = kind(parameters, weight_decay=weight_decay, **options)
    got = run(optimizer, gradients, scale)
    assert got is parameters
    assert got.dtype == dtype
    assert np.abs((got - expected) / np.maximum(1, np.abs(expected))).max() < tolerance
    assert (gradients == untouched).all()


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("name", ["Adam", "SGD", "momentum"])
def test_updates_equal_torch(name, weight_decay):
    torch = pytest.importorskip("torch")
    parameters, gradients = example()
    theirs = torch.nn.Parameter(torch.tensor(parameters))
    ours: Optimizer
    if name == "Adam":
        ours, peer = (
            Adam(parameters, weight_decay=weight_decay),
            torch.optim.AdamW([theirs], weight_decay=weight_decay),
        )
    elif name == "SGD":  # its decay is coupled, which without momentum is the same
        ours, peer = (
            SGD(parameters, weight_decay=weight_decay),
            torch.optim.SGD([theirs], weight_decay=weight_decay),
        )
    else:
        ours, peer = SGD(parameters, momentum=0.9), torch.optim.SGD([theirs], momentum=0.9)
    for step, g in enumerate(gradients):
        for group in peer.param_groups:
            group["lr"] = rate(step)
        theirs.grad = torch.tensor(g)
        peer.step()
        ours.update(g, rate(step))
    expected = theirs.detach().numpy()
    assert np.abs((parameters - expected) / np.maximum(1, np.abs(expected))).max() < 1e-6


def test_without_a_learning_rate_the_optimizers_own_is_used():
    optimizer = SGD(np.zeros(2, np.float32), learning_rate=0.5)
    optimizer.update(np.ones(2, np.float32))
    assert optimizer.parameters.tolist() == [-0.5, -0.5]


@pytest.mark.parametrize("size", [0, 1, PIECE, SIZE])
@pytest.mark.parametrize(("kind", "options"), [(Adam, {}), (SGD, {"momentum": 0.9})])
def test_the_number_of_threads_changes_no_bit(kind, options, size):
    results = []
    for threads in (1, 2, 3, 8):
        parameters, gradients = example(size=size)
        results.append(
            run(kind(parameters, threads=threads, weight_decay=0.1, **options), gradients).tobytes()
        )
    assert len(set(results)) == 1


@pytest.mark.parametrize(("kind", "options"), [(Adam, {}), (SGD, {}), (SGD, {"momentum": 0.9}), (NTASGD, {})])
def test_a_resumed_optimizer_goes_on_with_equal_bits(kind, options):
    parameters, gradients = example()
    undisturbed = run(kind(parameters.copy(), **options), gradients)
    first = kind(parameters.copy(), **options)
    run(first, gradients[:3])
    second = kind(first.parameters.copy(), **options)
    second.load_state({name: np.copy(value) for name, value in first.state().items()})
    assert second.t == 3
    assert run(second, gradients[3:], first=3).tobytes() == undisturbed.tobytes()


def test_a_state_that_does_not_fit_is_refused_and_nothing_is_loaded():
    adam = Adam(np.zeros(4, np.float32))
    with pytest.raises(InputError, match="expected m, t, v; got b, t"):
        adam.load_state(SGD(np.zeros(4, np.float32), momentum=0.9).state())
    other = Adam(np.zeros(4, np.float32)).state()
    with pytest.raises(InputError, match=r"expected v of shape \(4,\), got \(5,\)"):
        adam.load_state({**other, "m": np.ones(4), "v": np.ones(5), "t": 9})
    assert adam.t == 0
    assert not adam.m.any()


def test_an_update_needs_no_memory_of_the_parameters_size():
    size = 64 * PIECE
    optimizer = Adam(np.ones(size, np.float32), threads=2)
    gradients = np.ones(size, np.float32)
    optimizer.update(gradients)
    tracemalloc.start()
    optimizer.update(gradients)
    global_norm(gradients)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size * 4 / 10


def test_an_error_in_a_thread_is_not_swallowed(monkeypatch):
    optimizer = SGD(np.zeros(4 * PIECE, np.float32), threads=2)

    def broken(piece, scratch):
        if piece.start >= 2 * PIECE:  # the second thread's share
            raise RuntimeError("planted")

    monkeypatch.setattr(optimizer, "_piece_updater", lambda *_: broken)
    with pytest.raises(RuntimeError, match="planted"):
        optimizer.update(np.zeros(4 * PIECE, np.float32))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize("size", [0, 1, 8192, SIZE])
def test_global_norm(size, dtype, tolerance):
    _, gradients = example(dtype, size)
    expected = np.sqrt((gradients[0].astype(np.float64) ** 2).sum())
    norms = {global_norm(gradients[0], threads) for threads in (1, 2, 3)}
    assert len(norms) == 1
    assert norms.pop() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_the_norm_of_what_is_not_finite_is_not_finite(bad):
    flat = np.zeros(SIZE, np.float32)
    flat[-1] = bad
    assert not np.isfinite(global_norm(flat))


def test_clip_factor():
    assert clip_factor(2.0, 0.5) == 0.25
    assert clip_factor(0.5, 0.5) == clip_factor(0.0, 0.5) == 1.0
    assert clip_factor(1e9, None) == clip_factor(1e9, 0.0) == 1.0


def test_a_clipped_update_is_torchs():
    torch = pytest.importorskip("torch")
    parameters, gradients = example()
    theirs = torch.nn.Parameter(torch.tensor(parameters))
    theirs.grad = torch.tensor(gradients[0])
    norm = torch.linalg.vector_norm(theirs.grad, dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([theirs], 0.25)  # by a norm of float32 sums
    torch.optim.SGD([theirs], lr=1.0).step()
    ours = SGD(parameters, learning_rate=1.0)
    assert global_norm(gradients[0]) == pytest.approx(float(norm), rel=1e-6)
    ours.update(gradients[0], scale=clip_factor(global_norm(gradients[0]), 0.25))
    assert np.abs(parameters - theirs.detach().numpy()).max() < 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam(np.zeros((2, 2), np.float32)), "one flat"),
        (lambda: Adam(np.zeros(2, np.float16)), "float16"),
        (lambda: Adam(np.zeros(2, np.float32), learning_rate=-1.0), "learning_rate"),
        (lambda: Adam(np.zeros(2, np.float32), beta1=1.0), "beta1"),
        (lambda: Adam(np.zeros(2, np.float32), beta2=-0.1), "beta2"),
        (lambda: Adam(np.zeros(2, np.float32), epsilon=0.0), "epsilon"),
        (lambda: SGD(np.zeros(2, np.float32), momentum=1.0), "momentum"),
        (lambda: SGD(np.zeros(2, np.float32), weight_decay=-1.0), "weight_decay"),
        (lambda: NTASGD(np.zeros(2, np.float32), nonmono=0), "nonmono"),
        (
            lambda: SGD(np.zeros(2, np.float32)).update(np.zeros(3, np.float32)),
            "gradients like the parameters",
        ),
        (
            lambda: SGD(np.zeros(2, np.float32)).update(np.zeros(2, np.float64)),
            "gradients like the parameters",
        ),
    ],
)
def test_what_does_not_fit_is_an_input_error(make, message):
    with pytest.raises(InputError, match=message):
        make()


# NT-ASGD.


def triggered(size=SIZE, **options):
    """One that has just turned to averaging, after three updates."""
    parameters, gradients = example(size=size)
    optimizer = NTASGD(parameters, nonmono=1, **options)
    run(optimizer, gradients[:3])
    for loss in (5.0, 5.5, 5.6):
        assert optimizer.trigger is None
        optimizer.validated(loss)
    assert optimizer.trigger == 3
    return optimizer, gradients[3:]


def test_averaging_is_the_mean_of_the_iterates_since_the_trigger_and_sgd_goes_on():
    optimizer, gradients = triggered(weight_decay=0.3)
    plain = SGD(optimizer.parameters.copy(), weight_decay=0.3)
    assert optimizer.average is not None
    assert (optimizer.average == optimizer.parameters).all()
    iterates = []
    for step, g in enumerate(gradients, start=3):
        optimizer.update(g, rate(step), 0.5)
        plain.update(g, rate(step), 0.5)
        assert optimizer.parameters.tobytes() == plain.parameters.tobytes()
        iterates.append(plain.parameters.astype(np.float64))
        expected = np.mean(iterates, axis=0)
        assert np.abs((optimizer.average - expected) / np.maximum(1, np.abs(expected))).max() < 1e-6


def test_averaging_is_torchs():
    """torch.optim.ASGD with t0 = 0 leaves out the first iterate, taking the second for the first."""
    torch = pytest.importorskip("torch")
    optimizer, gradients = triggered()
    optimizer.update(gradients[0], rate(3))
    optimizer.trigger = optimizer.t
    theirs = torch.nn.Parameter(torch.tensor(optimizer.parameters))
    peer = torch.optim.ASGD([theirs], lr=rate(4), t0=0, lambd=0.0)
    peer.state[theirs] = {
        "step": torch.tensor(1.0),
        "eta": torch.tensor(rate(4)),
        "mu": torch.tensor(1.0),
        "ax": torch.zeros_like(theirs),
    }
    for step, g in enumerate(gradients[1:], start=4):
        for group in peer.param_groups:
            group["lr"] = rate(step)
        peer.state[theirs]["eta"] = torch.tensor(rate(step))
        theirs.grad = torch.tensor(g)
        peer.step()
        optimizer.update(g, rate(step))
    expected = peer.state[theirs]["ax"].numpy()
    assert np.abs((optimizer.average - expected) / np.maximum(1, np.abs(expected))).max() < 1e-6


@pytest.mark.parametrize("nonmono", [1, 2, 5])
def test_the_trigger_is_that_of_the_paper(nonmono):
    """Against the condition as published, on many random walks of losses."""
    generator = np.random.default_rng(nonmono)
    when = set()
    for _ in range(50):
        losses = (np.cumsum(generator.standard_normal(30)) - np.arange(30) * 0.3).tolist()
        expected = next(
            (k for k in range(30) if k > nonmono and losses[k] > min(losses[: k - nonmono])), None
        )
        optimizer = NTASGD(np.zeros(1, np.float32), nonmono=nonmono)
        got = None
        for k, loss in enumerate(losses):
            optimizer.validated(loss)
            if got is None and optimizer.trigger is not None:
                got = k
        assert got == expected
        when.add(got)
    assert len(when) > 5
    assert min(k for k in when if k is not None) == nonmono + 1


def test_evaluation_sees_the_average_and_training_its_own_weights_again():
    optimizer, gradients = triggered()
    run(optimizer, gradients, first=3)
    assert optimizer.average is not None
    own, average = optimizer.parameters.copy(), optimizer.average.copy()
    with optimizer.evaluation_weights():
        assert optimizer.parameters.tobytes() == average.tobytes()
    assert optimizer.parameters.tobytes() == own.tobytes()
    assert optimizer.average.tobytes() == average.tobytes()
    with contextlib.suppress(KeyError), optimizer.evaluation_weights():
        raise KeyError
    assert optimizer.parameters.tobytes() == own.tobytes()
    for other in (NTASGD(own.copy()), SGD(own.copy()), Adam(own.copy())):
        other.validated(1.0)
        with other.evaluation_weights():
            assert other.parameters.tobytes() == own.tobytes()


@pytest.mark.parametrize("stop", [0, 2, 3, 5])
def test_nt_asgd_resumes_to_equal_bits_before_and_after_the_trigger(stop):
    losses = [5.0, 5.5, 4.9, 4.8, 4.95, 4.8, 4.7]  # the fifth is the trigger

    def go(optimizer, first, last):
        for step in range(first, last):
            optimizer.update(gradients[step], rate(step))
            optimizer.validated(losses[step])

    parameters, gradients = example()
    whole = NTASGD(parameters.copy(), nonmono=1)
    go(whole, 0, 7)
    assert whole.trigger == 5
    first = NTASGD(parameters.copy(), nonmono=1)
    go(first, 0, stop)
    second = NTASGD(first.parameters.copy(), nonmono=1)
    second.load_state({name: np.copy(value) for name, value in first.state().items()})
    go(second, stop, 7)
    for name, value in whole.state().items():
        assert np.asarray(value).tobytes() == np.asarray(second.state()[name]).tobytes(), name
    assert whole.parameters.tobytes() == second.parameters.tobytes()


def test_a_state_that_is_not_nt_asgds_is_refused_and_nothing_is_loaded():
    optimizer = NTASGD(np.zeros(4, np.float32))
    with pytest.raises(InputError, match="expected losses, t, trigger; got b, t"):
        optimizer.load_state(SGD(np.zeros(4, np.float32), momentum=0.9).state())
    other, _ = triggered(size=5)
    with pytest.raises(InputError, match=r"expected average of shape \(4,\), got \(5,\)"):
        optimizer.load_state(other.state())
    assert (optimizer.t, optimizer.trigger, optimizer.average) == (0, None, None)


def test_averaging_gives_the_same_bits_on_any_number_of_threads():
    results = []
    for threads in (1, 2, 3):
        optimizer, gradients = triggered(threads=threads)
        run(optimizer, gradients, first=3)
        results.append(optimizer.average.tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("size", [0, 1, PIECE, SIZE])
def test_add_scaled(size):
    source, gradients = example(size=size)
    for threads in (1, 3):
        target = gradients[0].copy()
        add_scaled(target, source, 0.25, threads)
        assert (target == gradients[0] + np.float32(0.25) * source).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [1, PIECE, 2 * PIECE + 3, 5 * PIECE])
def test_every_piece_is_worked_on_once_with_memory_of_its_length(size, threads):
    counts = np.zeros(size, np.int8)

    def work(piece, scratch, more):
        assert piece.start % PIECE == 0
        assert len(scratch) == len(more) == piece.stop - piece.start
        assert (scratch.dtype, more.dtype) == (np.float32, np.int64)
        counts[piece] += 1

    for_each_piece(size, threads, work, (np.dtype(np.float32), np.dtype(np.int64)))
    assert (counts == 1).all()
