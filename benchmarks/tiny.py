"""A small text, and a model that learns it in a second: for what needs real runs, but no real results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

TINY: dict[str, Any] = {
    "embedding_size": 12,
    "hidden_size": 16,
    "num_layers": 2,
    "encoder_emb_keep_prob": 0.9,
    "recurrent_weight_keep_prob": 0.8,
    "encoder_dp_input_keep_prob": 0.7,
    "encoder_last_input_keep_prob": 0.8,
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
