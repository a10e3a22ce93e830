"""Draw the graph of a cell, of three steps or of a loss: python -m minilstm.draw cell --out cell.svg

cell   one step of the LSTM, from primitives
steps  three of them, one after the other, with the same weights
loss   what a small model differentiates in training: dropouts, two layers, tied softmax, AR and TAR

DOT text goes to --out or to the terminal; an SVG needs Graphviz. `autograd.graph` says what the colours mean.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autograd import Parameter, Variable
from autograd.command import Parser, run
from autograd.errors import InputError
from autograd.graph import render_svg, to_dot
from minilstm.config import ModelConfig
from minilstm.language_model import LanguageModel
from minilstm.lstm_cell import lstm_cell

T, B, E, H, V = 3, 2, 4, 6, 10
"""Steps, batch, embedding, hidden units, words: small, and no two alike, so that a shape tells what it is."""
CONFIG = ModelConfig(
    vocab_size=V,
    embedding_size=E,
    hidden_size=H,
    num_layers=2,
    encoder_emb_keep_prob=0.9,
    recurrent_weight_keep_prob=0.5,
    encoder_dp_input_keep_prob=0.7,
    encoder_dp_output_keep_prob=0.7,
    encoder_last_output_keep_prob=0.6,
    activation_regularization=2.0,
    temporal_activation_regularization=1.0,
)


def draw_steps(steps: int) -> str:
    """`lstm_cell`, `steps` times, in the DOT language; more than one stand in frames of their own."""
    rng = np.random.default_rng(0)

    def values(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    W_ih, W_hh = Parameter(values(4 * H, E), "W_ih"), Parameter(values(4 * H, H), "W_hh")
    b = Parameter(values(4 * H), "b")
    h, c = Variable(values(B, H), name="h_0"), Variable(values(B, H), name="c_0")
    frames = {}
    for t in range(1, steps + 1):
        h, c = lstm_cell(Variable(values(B, E), name=f"x_{t}"), h, c, W_ih, W_hh, b)
        h.name, c.name = f"h_{t}", f"c_{t}"
        frames[f"step {t}"] = (h, c)
    return to_dot((h, c), groups=frames if steps > 1 else None)


def draw_loss(model: LanguageModel) -> str:
    """What `model` differentiates in a step of training, in the DOT language; T steps, B rows."""
    text = np.random.default_rng(0).integers(0, model.config.vocab_size, (T + 1, B))
    objective, loss, _ = model.objective(text[:-1], text[1:])
    objective.name, loss.name = "objective", "loss"
    return to_dot((objective, loss))


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = Parser.documented("python -m minilstm.draw", __doc__)
    parser.add_argument("what", choices=("cell", "steps", "loss"))
    parser.add_argument("--out", metavar="FILE", type=Path, help="a name ending in .dot or .svg")
    parser.add_argument("--readable", action="store_true", help="loss: every LSTM step from primitives")
    args = parser.parse_args(argv)
    if args.out and args.out.suffix not in (".dot", ".svg"):
        raise InputError(f"--out: expected a name ending in .dot or .svg; got {str(args.out)!r}")
    if args.what == "loss":
        model = LanguageModel(CONFIG)
        model.implementation = "readable" if args.readable else "fused"
        dot = draw_loss(model)
    else:
        dot = draw_steps({"cell": 1, "steps": T}[args.what])
    if args.out:
        args.out.write_bytes(render_svg(dot) if args.out.suffix == ".svg" else dot.encode())
    else:
        print(dot, end="")
    return 0


if __name__ == "__main__":
    run(main)
