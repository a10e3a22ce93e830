"""How the API's pages read our docstrings: `h, c: (B, H)` is one entry for two arguments."""

from __future__ import annotations

import re
from typing import Any

import griffe

NAMES = re.compile(r"^( {4})((?:\*?\w+, )+\*?\w+): ", re.MULTILINE)


class SeveralNames(griffe.Extension):
    """Write several names of one entry without blanks, for a blank would begin a type."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Called for every object of the API."""
        if obj.docstring:
            obj.docstring.value = NAMES.sub(lambda found: found[0].replace(", ", ","), obj.docstring.value)
