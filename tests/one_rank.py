"""The part of one rank among many, without the others."""

import numpy as np

from train.communicator import SingleProcess


class OneRank(SingleProcess):
    """Keeps in `given` what this rank adds to the sums over all ranks; the sums themselves it makes up."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size
        self.given = None

    def allreduce_sum(self, values):
        self.given = np.array(values, np.float64)
        return np.ones_like(self.given)


def sums_over_ranks(size, work):
    """What `allreduce_sum` would give while every one of `size` ranks runs work(communicator)."""
    ranks = [OneRank(rank, size) for rank in range(size)]
    for communicator in ranks:
        work(communicator)
    return sum(communicator.given for communicator in ranks)
