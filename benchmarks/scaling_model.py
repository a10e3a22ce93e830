"""How long a step takes on many ranks, on paper: measured compute, and the α-β model of communication.

A message of n bytes takes α + n/β seconds (Hockney 1994). The gradient, n bytes on each of P ranks, is summed

    by a ring      2(P - 1)·α + 2·n·(P - 1)/P / β     bandwidth-optimal (Patarasuk & Yuan 2009)
    by a tree      2·⌈log₂ P⌉·(α + n/β)               reduced, then broadcast; fewer messages

and by whichever is faster. On nodes of many GPUs the sum is made within each node first, each GPU then sums
its share with those of the other nodes, and the shares are put together again (Mikami et al. 2018).

With a sampled softmax most rows of the tied matrix have no gradient. A program may let only the others
travel, each with its number, and every rank gather all of them; the rest is summed as before. This one does
not yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from minilstm import ModelConfig

FLOAT_BYTES, INDEX_BYTES = 4, 4


@dataclass(frozen=True)
class Link:
    """What joins ranks: α in seconds, β in bytes a second and direction."""

    name: str
    alpha: float
    beta: float


NVLINK = Link("NVLink", 3e-6, 360e9)
PCIE = Link("PCIe 4", 8e-6, 20e9)
GBIT_100 = Link("100 Gb/s", 12e-6, 11e9)
GBIT_400 = Link("400 Gb/s", 8e-6, 44e9)
"""Textbook figures, not measured here: what NCCL commonly reaches of the link's nominal rate."""


@dataclass(frozen=True)
class Cluster:
    """Nodes of `per_node` ranks: joined by `inside` within one, by `between` from node to node, where every
    rank has a network link of its own."""

    inside: Link
    between: Link
    per_node: int = 8

    @property
    def name(self) -> str:
        return f"{self.inside.name}, {self.between.name}"


def ring_seconds(num_bytes: float, ranks: int, link: Link) -> float:
    """Allreduce of `num_bytes` on each rank around a ring."""
    return 2 * (ranks - 1) * link.alpha + 2 * num_bytes * (ranks - 1) / ranks / link.beta


def tree_seconds(num_bytes: float, ranks: int, link: Link) -> float:
    """The same up a binary tree and down again."""
    return 2 * math.ceil(math.log2(ranks)) * (link.alpha + num_bytes / link.beta) if ranks > 1 else 0.0


def allreduce_seconds(num_bytes: float, ranks: int, link: Link) -> float:
    """The faster of the two."""
    return min(ring_seconds(num_bytes, ranks, link), tree_seconds(num_bytes, ranks, link))


def allgather_seconds(num_bytes: float, ranks: int, link: Link) -> float:
    """Every rank's `num_bytes` to every rank, around a ring."""
    return (ranks - 1) * (link.alpha + num_bytes / link.beta)


def cluster_allreduce_seconds(num_bytes: float, ranks: int, cluster: Cluster) -> float:
    """Within the nodes, between them, within them again."""
    inside = min(ranks, cluster.per_node)
    nodes = -(-ranks // cluster.per_node)
    if nodes == 1:
        return allreduce_seconds(num_bytes, ranks, cluster.inside)
    # Reduce-scatter before and allgather after are the two halves of a ring.
    within = ring_seconds(num_bytes, inside, cluster.inside)
    return within + allreduce_seconds(num_bytes / inside, nodes, cluster.between)


def cluster_allgather_seconds(num_bytes: float, ranks: int, cluster: Cluster) -> float:
    """Between the nodes, each rank its own share; then within them."""
    inside = min(ranks, cluster.per_node)
    nodes = -(-ranks // cluster.per_node)
    between = allgather_seconds(num_bytes, nodes, cluster.between) if nodes > 1 else 0.0
    return between + allgather_seconds(num_bytes * nodes, inside, cluster.inside)


@dataclass(frozen=True)
class Job:
    """A training step of one rank, by weak scaling: each rank brings a batch of its own.

    Attributes:
        model: its sizes and its softmax.
        compute_seconds: forward, backward and update, no communication.
        tokens: of each rank and step.
        rows_only: whether of the tied matrix only the rows that have a gradient travel.
        overlap_seconds: of the backward pass beside which gradients travel already, the tied matrix's too.
    """

    model: ModelConfig
    compute_seconds: float
    tokens: int
    rows_only: bool = False
    overlap_seconds: float = 0.0

    @property
    def gradient_bytes(self) -> int:
        """All gradients, dense, float32."""
        return self.model.num_parameters() * FLOAT_BYTES

    @property
    def sparse_row_bytes(self) -> int:
        """The rows of the tied matrix that one rank's step touches: those of its samples and of its words."""
        words = distinct_words(self.model.vocab_size, self.tokens)
        rows = min(self.model.num_samples + words, self.model.vocab_size)
        return round(rows) * (self.model.embedding_size * FLOAT_BYTES + INDEX_BYTES)

    def communication_seconds(self, ranks: int, cluster: Cluster) -> float:
        """Of one step, before any overlap."""
        whole = cluster_allreduce_seconds(self.gradient_bytes, ranks, cluster)
        if not self.rows_only:
            return whole
        tied = self.model.vocab_size * (self.model.embedding_size + 1) * FLOAT_BYTES
        rows = cluster_allgather_seconds(self.sparse_row_bytes, ranks, cluster)
        rest = cluster_allreduce_seconds(self.gradient_bytes - tied, ranks, cluster)
        return min(whole, rows + rest)  # many ranks' rows together are more than the matrix

    def step_seconds(self, ranks: int, cluster: Cluster) -> float:
        """Compute, and what of the communication does not hide behind the backward pass."""
        if ranks == 1:
            return self.compute_seconds
        exposed = max(self.communication_seconds(ranks, cluster) - self.overlap_seconds, 0.0)
        return self.compute_seconds + exposed

    def efficiency(self, ranks: int, cluster: Cluster) -> float:
        """Tokens a second and rank, against one rank alone."""
        return self.compute_seconds / self.step_seconds(ranks, cluster)


def distinct_words(vocab_size: int, tokens: int) -> float:
    """Expected number of different words among so many of text, words falling off as 1/rank (Zipf)."""
    k = np.arange(vocab_size, dtype=np.float64)
    p = np.log1p(1 / (k + 1)) / math.log(vocab_size + 1)
    return float(-np.expm1(tokens * np.log1p(-p)).sum())
