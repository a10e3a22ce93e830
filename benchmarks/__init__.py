"""What is claimed about speed, memory and learning, in a form that anybody can run."""

import train  # noqa: F401 - decides the BLAS threads, which has to happen before NumPy is loaded
