"""What torch's FLOP counter does not know of the in-place products that the written-out layers are made of."""

from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula


def _product(into: Any, a: Any, b: Any, **_: Any) -> int:
    """Two operations for each multiplication of (..., m, k) with (..., k, n)."""
    *batch, m, k = a
    count = 2 * m * k * b[-1]
    for size in batch:
        count *= size
    return count


for _operation in (torch.ops.aten.addmm_, torch.ops.aten.baddbmm_):
    if _operation not in flop_registry:
        register_flop_formula(_operation)(_product)
