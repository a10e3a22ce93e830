"""A small text to train on, and a run that takes a second or two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from mpi import run_ranks

TINY = {
    "embedding_size": 12,
    "hidden_size": 16,
    "num_layers": 2,
    "encoder_emb_keep_prob": 0.9,
    "recurrent_weight_keep_prob": 0.8,
    "encoder_dp_input_keep_prob": 0.7,
    "encoder_last_output_keep_prob": 0.7,
    "batch_size": 8,
    "window": 7,
    "learning_rate": 0.01,
    "schedule": "fixed",
    "warmup_steps": 0,
    "log_every": 1,
    "evaluation_batch_size": 4,
}


def write_text(path: Path, lines: int = 300, seed: int = 0) -> Path:
    """Sentences of a made-up grammar; a model can learn which word follows which."""
    rng = np.random.default_rng(seed)
    subjects, verbs, objects = (
        ("cat", "dog", "bird"),
        ("sees", "hears", "likes"),
        ("fish", "trees", "rain", "songs"),
    )
    text = [
        f"the {rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(objects)} and {rng.choice(objects)} ."
        for _ in range(lines)
    ]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def flags(text: Path, run: Path, **knobs: object) -> list[str]:
    """Arguments of train.wt103 for a tiny run; knobs replace those of `TINY`."""
    settings = [part for key, value in {**TINY, **knobs}.items() for part in ("--set", f"{key}={value}")]
    return ["--preset", "quickstart", "--data", str(text), "--run-dir", str(run), *settings]


def train_tiny(ranks: int, text: Path, run: Path, *more: str, **knobs: object) -> list[dict]:
    """Train for real on some ranks; the rows of metrics.jsonl."""
    env = {"MINILSTM_DATA": str(text.parent / "prepared")}
    result = run_ranks(ranks, "train.wt103", *flags(text, run, **knobs), *more, env=env, timeout=120)
    assert result.returncode == 0, result.stderr
    return rows_of(run)


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
