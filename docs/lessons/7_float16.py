# %% [markdown]
# # Lesson 7: float16, masters, and the scale of the loss
#
# Numbers of half the size take half the memory, and a GPU multiplies them many times faster. They are also
# coarse, and they end early. This lesson looks at both limits, lets a training run into one of them, and
# sees it survive.

# %%
import numpy as np

from minilstm import LanguageModel, MaskStream, ModelConfig
from train.communicator import SingleProcess
from train.mixed_precision import Backoff, MasterWeights
from train.optimizers import Adam
from train.step import TrainingStep

# %% [markdown]
# ## The limits
#
# float16 keeps 11 binary digits and ends at 65,504. Below 6e-8 there is only zero.

# %%
half = np.float16
with np.errstate(over="ignore"):
    print(f"2048 + 1 = {half(2048) + half(1):.0f}")
    print(f"60000 + 10000 = {half(60000) + half(10000)}")
    print(f"0.00000001 = {half(1e-8)}")
assert half(2048) + half(1) == 2048

# %% [markdown]
# ## Masters
#
# A weight near 1 learns by steps of 0.0001, say. In float16 the next number above 1 is 1.001: each step is
# rounded away, and after a thousand of them nothing has been learned. So the weights that learn, the
# *masters*, are float32; a float16 copy of them computes.

# %%
in_half, master = half(1), np.float32(1)
for _ in range(1000):
    in_half += half(1e-4)
    master += np.float32(1e-4)
print(f"a thousand steps of 0.0001 from 1: float16 {in_half}, a float32 master {master:.4f}")
assert in_half == 1
assert abs(master - 1.1) < 1e-3

# %% [markdown]
# `MasterWeights` keeps the two: the model given to it is the masters, `half` the copy, which is never
# written but by rounding the masters down.

# %%
config = ModelConfig(vocab_size=200, embedding_size=24, hidden_size=32, num_layers=2)
masters = MasterWeights(LanguageModel(config, seed=0))
print(f"masters {masters.model.dtype}, the copy that computes {masters.half.dtype}")
assert np.array_equal(masters.half.flat_parameters, masters.model.flat_parameters.astype(half))

# %% [markdown]
# ## Gradients that vanish
#
# Some words are rare, and so are gradients that come near 1. Take those of a real loss in float32, and ask
# how many of them float16 would round to zero: as they are, and multiplied by 2¹⁴ = 16,384.

# %%
# Streams of words in which each is the last one plus 0, 1 or 2: something that can be learned.
rng = np.random.default_rng(1)
text = (rng.integers(0, 200, (1, 32)) + rng.integers(0, 3, (21, 32)).cumsum(axis=0)) % 200  # (T + 1, B)
window = text[:-1], text[1:]

model = LanguageModel(config, seed=0)
model(*window)[0].backward()
gradients = model.flat_gradients[model.flat_gradients != 0]


def lost(scale):
    with np.errstate(over="ignore"):
        return np.mean((gradients * np.float32(scale)).astype(half) == 0)


sizes = abs(gradients)
print(f"half of the gradients are below {np.median(sizes):.0e}, the largest is {sizes.max():.3f}")
print(f"rounded to zero: {lost(1):.2%} as they are, {lost(2**14):.2%} times 2^14")
assert lost(2**14) < lost(1)

# %% [markdown]
# The remedy is one multiplication: the *loss* is scaled before the backward pass. Every equation of that
# pass is linear in what arrives, so every gradient comes out multiplied by the same number, and is divided
# by it once it is float32:
#
#     loss · s → backward → gradients · s, in float16 → float32, / s → mean over ranks → clip → update
#
# ## The right scale, and an overflow
#
# Which s? As large as possible, without a gradient beyond 65,504: an infinity spoils the whole update.
# Nobody knows the largest gradient of tomorrow. So the scale is tried: when a step overflows it is
# **skipped**, the scale is halved, and after many good steps it is doubled again. Begin far too high, at
# 2²⁴, and watch.

# %%


def train(scaler, steps=30):
    model = LanguageModel(config, seed=0)
    optimizer = Adam(model.flat_parameters)
    step = TrainingStep(model, optimizer, SingleProcess(), clip_norm=1.0, scaler=scaler)
    history = []
    for number in range(steps):
        scale, before = scaler.scale if scaler else 1.0, model.flat_parameters.copy()
        result = step(*window, None, MaskStream(0, number), learning_rate=0.02)
        unchanged = np.array_equal(before, model.flat_parameters)
        assert unchanged == (not result.is_finite)  # an update is made whole, or not at all
        history.append((scale, result, optimizer.t))
    return history


history = train(Backoff(initial=2.0**24))
for number, (scale, result, _) in enumerate(history[:16], start=1):
    told = f"gradient norm {result.grad_norm:.3f}" if result.is_finite else "overflow: skipped"
    print(f"step {number:2}: scale 2^{np.log2(scale):.0f}, loss {result.loss:.3f}, {told}")
skipped = [not result.is_finite for _, result, _ in history]
assert 0 < sum(skipped) < 10
assert history[-1][2] == len(history) - sum(skipped)  # skipped steps are not counted as updates

# %% [markdown]
# A scale that was good overflows again when the gradients have grown, and gives way again. In a step that
# overflowed, no weight moved and the optimizer did not count: Adam's moments never saw an infinity. On many
# ranks the question "is it finite?" is asked of the mean over all of them, so that all skip the same step.
#
# ## Does it learn the same?
#
# Beside it a training in float32, which skips nothing. Compare them update by update.

# %%
plain = [result.loss for _, result, _ in train(None)]
mixed = [result.loss for _, result, _ in history if result.is_finite]
for update in (1, 10, 20, len(mixed)):
    losses = plain[update - 1], mixed[update - 1]
    print(f"update {update:2}: loss {losses[0]:.4f} in float32, {losses[1]:.4f} in mixed precision")
assert np.allclose(mixed, plain[: len(mixed)], rtol=0.02)
assert mixed[-1] < 0.8 * mixed[0]

# %% [markdown]
# The same command trains this way: `python -m train.wt103 --precision mixed`. What is *not* float16 there:
# sums and means, the softmax, the statistics of layer normalisation, the loss, the masters and all that the
# optimizer keeps.
#
# **Try it.** Begin with a scale of 1: how much is lost? Give `Backoff` a `growth_steps` of 5 and follow the
# scale for a hundred steps. What would happen if the gradients were clipped before they are divided by the
# scale? Next: [lesson 8](8_four_ranks.py), four ranks.
