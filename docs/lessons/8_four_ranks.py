# %% [markdown]
# # Lesson 8: four ranks, one gradient
#
# Four processes (in MPI's word: ranks) hold the same weights, and each reads its own rows of the batch.
# Before every update they average their gradients. What comes out is the gradient of the whole batch: the
# same as one process would have found, only sooner.
#
# The text below is a program of its own. It is run once by one process and once by `mpirun -np 4`, for
# real.

# %%
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

PROGRAM = """
import json
import sys
import zlib

import numpy as np
from minilstm import LanguageModel, MaskStream, ModelConfig
from train.communicator import get_communicator
from train.optimizers import Adam
from train.step import TrainingStep

folder = sys.argv[1]
ranks = get_communicator()  # one process alone, or MPI: the same few methods
config = ModelConfig(
    vocab_size=50, embedding_size=16, hidden_size=16, num_layers=2, encoder_last_output_keep_prob=0.8
)
model = LanguageModel(config, seed=0)  # the same seed on every rank, so the same weights
text = np.random.default_rng(1).integers(0, 50, (21, 8))  # (T + 1, B): eight streams of words
first, count = ranks.rank * 8 // ranks.size, 8 // ranks.size
mine = text[:, first : first + count]  # (T + 1, rows of this rank)

# One gradient, step by step. Dropout masks belong to rows of the whole batch: first_row tells which.
masks = MaskStream(seed=0, first_row=first)
objective, loss, _ = model.objective(mine[:-1], mine[1:], masks=masks)
objective.backward()
gradient = model.flat_gradients  # every weight's, one long array
own_norm = float(np.linalg.norm(gradient))
ranks.allreduce_mean_(gradient)  # the only thing that ranks say to each other
own_norms = ranks.gather_rows(np.array([own_norm]))
if ranks.is_root:
    np.save(f"{folder}/gradient_of_{ranks.size}.npy", gradient)

# Twenty whole steps: forward, backward, average, clip, update.
step = TrainingStep(model, Adam(model.flat_parameters), ranks, clip_norm=0.5)
losses, state = [], None
for number in range(20):
    result = step(mine[:-1], mine[1:], state, MaskStream(0, number, first), learning_rate=0.01)
    losses.append(result.loss)
checksums = ranks.gather_rows(np.array([zlib.crc32(model.flat_parameters)]))
if ranks.is_root:
    facts = {"own_norms": own_norms.tolist(), "losses": losses, "checksums": checksums.tolist()}
    with open(f"{folder}/facts_of_{ranks.size}.json", "w") as file:
        json.dump(facts, file)
"""

# %% [markdown]
# ## Run it
#
# `mpirun` comes with the wheel of MPICH (`pip install mpi4py mpich`), beside the Python that runs this.
# Each rank finds its number in the environment; `train/communicator.py` is the only file that looks.

# %%
work = tempfile.TemporaryDirectory()
folder = Path(work.name)
program = folder / "program.py"
program.write_text(PROGRAM)
# The children find the same modules, whether installed or not; one thread each, for four share the cores.
python_path = os.pathsep.join(filter(None, sys.path))
environment = os.environ | {"PYTHONPATH": python_path, "OPENBLAS_NUM_THREADS": "1"}


def run(ranks):
    launcher = [mpirun, "-np", str(ranks)] if ranks > 1 else []
    subprocess.run([*launcher, sys.executable, program, folder], check=True, env=environment, timeout=100)
    facts = json.loads((folder / f"facts_of_{ranks}.json").read_text())
    return facts, np.load(folder / f"gradient_of_{ranks}.npy")


beside = Path(sys.executable).parent / "mpirun"
mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
if mpirun is None or importlib.util.find_spec("mpi4py") is None:
    sys.exit("this lesson needs MPI: pip install mpi4py mpich")
alone, gradient_alone = run(1)
four, gradient_of_four = run(4)

# %% [markdown]
# ## One gradient
#
# Each rank's own gradient is another one, for it has seen other rows. Their mean is that of the whole
# batch: the loss is a mean over rows, and ranks have equally many of them.

# %%
print("length of each rank's own gradient:", ", ".join(f"{norm:.4f}" for norm in four["own_norms"]))
print(f"length of their mean:               {np.linalg.norm(gradient_of_four):.4f}")
print(f"one process, all eight rows:        {np.linalg.norm(gradient_alone):.4f}")
difference = np.linalg.norm(gradient_of_four - gradient_alone) / np.linalg.norm(gradient_alone)
print(f"relative difference of the two:     {difference:.1e}")
assert difference < 1e-5

# %% [markdown]
# The difference is rounding: float32 numbers added in another order.
#
# ## The same bits on every rank
#
# All ranks get the same mean, and so make the same update; nobody sends weights. After twenty steps the
# checksums of their parameters are still equal: to the bit, or they would drift apart for good.

# %%
print("checksums after 20 steps:", ", ".join(f"{checksum:08x}" for checksum in four["checksums"]))
assert len(set(four["checksums"])) == 1
for number in (0, 9, 19):
    losses = alone["losses"][number], four["losses"][number]
    print(f"step {number + 1:2}: loss {losses[0]:.5f} alone, {losses[1]:.5f} on four")
assert np.allclose(alone["losses"], four["losses"], rtol=1e-4)
work.cleanup()

# %% [markdown]
# ## What could go wrong, and did in other systems
#
# * **Clipping before averaging.** A rank clips by its own length, and the mean of clipped gradients is none
#   of the batch. Here the mean is clipped, so all ranks clip alike.
# * **Masks by rank.** If each rank draws the dropout masks of rows 0, 1, … the curves of one and of four
#   ranks part. Replace `first_row=first` by 0 and look at the relative difference.
# * **A decision that one rank makes alone.** A step is left out if the gradient is not a number: of the
#   mean, which all ranks have, and not of one's own.
#
# The same command trains on one process or on many:
#
#     python -m train.wt103 --preset quickstart
#     mpirun -np 4 python -m train.wt103 --preset quickstart
#
# Next: [lesson 9](9_train_look_generate.py), from a text to a model that writes.
