"""As many threads as the work is worth.

Threads that share a small product wait for each other at its end. Where another program holds one of the cores, the
wait is a turn of the scheduler, at every product: many times the product itself.
"""

import os

import torch

#: floating point operations that a thread should have between two meetings: some 20 ms, several turns of a scheduler
OPERATIONS_PER_THREAD = 1e9


def threads_for(operations: float) -> int:
    """The number of threads for products of so many operations: at most torch's, at least one.

    `OMP_NUM_THREADS` in the environment is the user's word, and keeps torch's number.
    """
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    return max(1, int(min(torch.get_num_threads(), operations / OPERATIONS_PER_THREAD)))


class Threads:
    """Torch's number of threads, taken for some work and given back."""

    def __init__(self) -> None:
        self._before: int | None = None

    def take(self, operations: float) -> None:
        """Sets the number for products of so many operations."""
        self.give_back()
        self._before = torch.get_num_threads()
        torch.set_num_threads(threads_for(operations))

    def give_back(self) -> None:
        """Sets the number from before `take`; nothing without it."""
        if self._before is not None:
            torch.set_num_threads(self._before)
            self._before = None
