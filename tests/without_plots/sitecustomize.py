"""On PYTHONPATH, as it were a Python without matplotlib: a run says so at its end and draws no picture.

A tiny run takes half a second to train, and two to draw.
"""

import sys

sys.modules["matplotlib"] = None  # type: ignore[assignment]  # what is None there cannot be found
