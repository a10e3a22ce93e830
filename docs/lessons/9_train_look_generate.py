# %% [markdown]
# # Lesson 9: train, look, generate
#
# A small language, a small model, the real command. Then a look inside: where does the model keep what it
# has to remember?
#
# The language has one rule. A sentence is about one or about many, and the verb at its end agrees with the
# noun at its beginning, whatever stands between: "the cats near the tall tree sleep ." but "the cat near
# the tall trees sleeps ."

# %%
import io
import json
import os
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

rng = np.random.default_rng(0)
NOUNS = ["cat", "dog", "bird", "tree"]
VERBS = ["sleep", "sing", "grow"]
ADJECTIVES = ["tall", "old", "small"]


def phrase(many):
    adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.5 else ""
    return f"the {adjective}{rng.choice(NOUNS)}{'s' if many else ''}"


def sentence():
    many = rng.random() < 0.5
    between = f" near {phrase(rng.random() < 0.5)}" if rng.random() < 0.7 else ""
    return f"{phrase(many)}{between} {rng.choice(VERBS)}{'' if many else 's'} ."


work = tempfile.TemporaryDirectory()
folder = Path(work.name)
text = folder / "text.txt"
text.write_text("\n".join(sentence() for _ in range(4000)) + "\n", encoding="utf-8")
print(*text.read_text(encoding="utf-8").splitlines()[:3], sep="\n")

# %% [markdown]
# ## Train
#
# The same command as for WikiText-103, with smaller numbers. It prepares the text, trains, scores the test
# part and writes all that belongs to the run into one folder.

# %%
run = folder / "run"
knobs = {
    "embedding_size": 32, "num_layers": 1, "lstm_init": "glorot", "embedding_init_scale": 0.5,
    "encoder_last_input_keep_prob": 1.0, "encoder_last_output_keep_prob": 1.0,  # too small to need dropout
    "batch_size": 8, "window": 30, "epochs": 6, "learning_rate": 0.02, "clip_norm": 5.0,
}  # fmt: skip
settings = [part for key, value in knobs.items() for part in ("--set", f"{key}={value}")]
command = [sys.executable, "-m", "train.wt103", "--preset", "quickstart", "--data", text, "--run-dir", run]
# The child finds the same modules, whether installed or not; prepared data stay in the folder of this lesson.
environment = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MINILSTM_DATA": str(folder)
}  # fmt: skip
subprocess.run([*command, *settings], check=True, env=environment, capture_output=True, timeout=100)
print("the folder of the run:", ", ".join(sorted(path.name for path in run.iterdir())))

# %% [markdown]
# ## Look at the curve
#
# `metrics.jsonl` has a line for every few steps, `result.json` the end of it; `python -m train.plot RUN`
# draws them. A guess among all words costs ln V.

# %%
rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
steps = [row for row in rows if row["kind"] == "train"]
for row in steps[:: len(steps) // 8]:
    print(f"step {row['step']:4}  perplexity {row['perplexity']:6.2f}  {'#' * round(12 * row['loss'])}")
result = json.loads((run / "result.json").read_text())
print(f"test perplexity {result['test']['perplexity']:.2f} after {result['tokens']:,} words")
assert result["test"]["perplexity"] < 2.8

# %% [markdown]
# ## Ask it
#
# `load_trained` needs the run's folder and nothing else. The sum of probabilities of the verbs for many,
# after beginnings whose last noun misleads:

# %%
from train.run_folder import load_trained

model, _, vocabulary, _ = load_trained(run)
word_ids = {word: index for index, word in enumerate(vocabulary.words)}
for_many = [word_ids[verb] for verb in VERBS]


def after(beginning):
    """Probabilities of the next word (V); after each word the layer's h and c, (2, words, units)."""
    state, states = None, []
    for word in ["<eos>", *beginning.split()]:
        log_probs, state = model.next_log_probs([word_ids[word]], state)
        states.append([part[0] for part in state[0]])
    return np.exp(log_probs[0]), np.array(states).transpose(1, 0, 2)


for beginning, many in [
    ("the cats near the old tree", True),
    ("the cat near the old trees", False),
    ("the small birds near the dog", True),
    ("the small bird near the dogs", False),
]:
    probabilities, _ = after(beginning)
    share = probabilities[for_many].sum()
    best = vocabulary.words[int(probabilities.argmax())]
    print(f"{beginning:30} … verbs for many {share:6.1%}, most probable: {best}")
    assert (share > 0.5) == many

# %% [markdown]
# ## Look inside
#
# It knows the number of the first noun when it reaches the verb, so something must carry it there. Compare
# the cell after "the cats near the old" and "the cat near the old" unit by unit, for many pairs of
# beginnings, and take the unit that differs most surely. Then watch this one unit over two sentences.

# %%


def cells_after(many):
    return np.array([after(f"the {noun}{'s' if many else ''} near the {adjective}")[1][1, -1]
                     for noun in NOUNS for adjective in ADJECTIVES])  # fmt: skip


one, many = cells_after(False), cells_after(True)
surely = abs(one.mean(axis=0) - many.mean(axis=0)) / (one.std(axis=0) + many.std(axis=0))
unit = int(surely.argmax())
print(f"unit {unit} keeps the number: one {one[:, unit].mean():+.2f}, many {many[:, unit].mean():+.2f}")
assert surely[unit] > 2
for beginning in ("the cats near the old tree", "the cat near the old trees"):
    _, (_, cells) = after(beginning)
    pairs = zip(beginning.split(), cells[1:, unit], strict=True)
    print("   ".join(f"{word} {value:+.2f}" for word, value in pairs))

# %% [markdown]
# The value is set at the first noun and holds until the verb: the forget gate of this unit stays near 1
# (lesson 4). `python -m train.anatomy RUN` makes a page on which all of this can be looked at, for every
# unit and gate.
#
# ## Generate
#
# `python -m train.generate RUN --prompt "the cats"` draws one word after the other from the model's own
# distribution. A low temperature prefers what is probable.

# %%
from train.generate import main as generate

written = io.StringIO()
with redirect_stdout(written):
    generate([str(run), "--prompt", "the cats near", "--temperature", "0.7", "--words", "60"])
print(written.getvalue().strip())
work.cleanup()

# %% [markdown]
# **Try it.** Count how often the verbs agree in a thousand words that it writes. Take away the long
# sentences from the training text: does it still agree over the distance? Then your own text: `--data
# my-text.txt`.
#
# From here: the [README](../../README.md) has the commands, `minilstm/language_model.py` the model,
# `train/training_run.py` the run.
