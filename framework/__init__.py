"""Explicit Vision: five published explicit ideas for vision networks in one PyTorch Lightning framework."""

import time

__version__ = "0.1.0"

# Read by the run summary: wall time from here includes the heavy imports that follow.
IMPORTED_AT = time.monotonic()
