"""One run: data, steps, ranks, checkpoints, and the commands that a person types."""

from train import threads as _threads

# Every module of this package loads NumPy, and NumPy's BLAS counts its threads while it is loaded: decide
# before that.
_threads.set_blas_threads()
_threads.reuse_freed_memory()
