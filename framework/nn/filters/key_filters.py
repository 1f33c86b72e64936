"""The eight master key filters as discrete scale-space operators, with the published scales.

Lindeberg, Babaiee, Kiasari, "Modelling and analysis of the 8 filters from the master key filters hypothesis",
arXiv 2509.12746 and JMIV 68(3), 2026; the conventions are those of its published numbers.

Coordinates: x to the right, y upwards, so array row 0 is the top. Arrays are what a convolution layer stores and
cross-correlates with.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from framework.errors import ConfigError, DataError
from framework.nn.filters.scale_space import (
    Boundary,
    Difference,
    check_odd,
    difference_rows,
    discrete_gaussian,
    outer,
    remove_mean,
    sharpened_delta,
    smoothed_difference,
)

Method = Literal["A", "B", "C1", "C2", "D1", "D2"]
METHODS: tuple[Method, ...] = ("A", "B", "C1", "C2", "D1", "D2")
NAMES = ("d_y^+ T", "d_x^- T", "d_y^- T", "d_x^+ T", "d_x T", "d_y T", "delta - alpha Lap T", "T")
COUNT = 8

# index -> (operator along y upwards, operator along x); 7 is not separable
ALONG: dict[int, tuple[Difference, Difference]] = {
    1: ("forward", "none"),
    2: ("none", "backward"),
    3: ("backward", "none"),
    4: ("none", "forward"),
    5: ("none", "central"),
    6: ("central", "none"),
    8: ("none", "none"),
}
# Rows run against y: a step up is a step back in the array, and the difference changes its sign.
_MIRRORED: dict[Difference, Difference] = {"forward": "backward", "backward": "forward", "central": "central"}

# The published parameters (repository tonylindeberg/masterfiltmodel, CC-BY-4.0), sigma_x, sigma_y of filters 1 to 8;
# those of Method A follow from the learned filters in closed form.
PUBLISHED_SIGMAS: dict[str, tuple[tuple[float, float], ...]] = {
    "A": (
        (0.5806626, 0.5575432),
        (0.5588685, 0.5802466),
        (0.6168694, 0.6009142),
        (0.6424972, 0.4243096),
        (1.0746885, 0.8003968),
        (0.7710665, 1.0034741),
        (0.6753769, 0.6753769),
        (0.5520898, 0.5452703),
    ),
    "B": (
        (0.6444672, 0.5828832),
        (0.5857840, 0.6439527),
        (0.6898323, 0.6740338),
        (0.7560299, 0.4595703),
        (1.1066640, 0.9447771),
        (0.9003583, 0.8888723),
        (0.6753769, 0.6753769),
        (0.6094604, 0.6011992),
    ),
    "C1": (
        (0.3601508, 0.5104523),
        (0.5546734, 0.4531658),
        (0.7006533, 0.6551256),
        (0.5627136, 0.3843719),
        (1.3092965, 0.8752764),
        (0.9728141, 1.1711558),
        (0.6537688, 0.6537688),
        (0.6366332, 0.5866332),
    ),
    "C2": (
        (0.4580194, 0.4580194),
        (0.4482463, 0.4482463),
        (0.6711850, 0.6711850),
        (0.4203522, 0.4203522),
        (1.3873955, 1.3873955),
        (1.0902606, 1.0902606),
        (0.6537688, 0.6537688),
        (0.6119729, 0.6119729),
    ),
    "D1": (
        (0.4912060, 0.7224121),
        (0.5813568, 0.5186432),
        (0.4831156, 0.5028643),
        (0.5009548, 0.0002),
        (1.2997487, 1.0042714),
        (0.9842714, 1.0737688),
        (0.6753769, 0.6753769),
        (0.6156281, 0.6081407),
    ),
    "D2": (
        (0.6440210, 0.6440210),
        (0.5580022, 0.5580022),
        (0.4951508, 0.4951508),
        (0.3796207, 0.3796207),
        (1.1934353, 1.1934353),
        (1.0382625, 1.0382625),
        (0.6753769, 0.6753769),
        (0.6118535, 0.6118535),
    ),
}
PUBLISHED_ALPHA = {"A": 0.5256281407, "B": 0.5256281407, "C1": 0.5216080402, "C2": 0.5216080402}
PUBLISHED_ALPHA |= {"D1": 0.5256281407, "D2": 0.5256281407}


@dataclass(frozen=True)
class KeyFilterFit:
    """One fitted filter.

    Attributes:
        index: 1 to 8.
        sigma_x: standard deviation along x in pixels.
        sigma_y: along y.
        alpha: factor of the Laplacian in filter 7, else None.
        objective: what the method minimises: the l1 or l2 distance to the normalised filter (C, D; and filter 7
            throughout), or for A and B the largest deviation of the weighted variances, in square pixels.
    """

    index: int
    sigma_x: float
    sigma_y: float
    alpha: float | None
    objective: float

    def template(self, size: int = 7, normalize: Literal["l2", "affine"] | None = None) -> Tensor:
        """The filter, (size, size) float64, in the published conventions."""
        return key_filter(self.index, self.sigma_x, self.sigma_y, self.alpha, size, normalize=normalize)

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


def key_filter(
    index: int,
    sigma_x: float | Tensor,
    sigma_y: float | Tensor | None = None,
    alpha: float | Tensor | None = None,
    size: int = 7,
    *,
    y_up: bool = True,
    boundary: Boundary = "reflect",
    normalize: Literal["l2", "affine"] | None = None,
    points: int | None = None,
) -> Tensor:
    """One idealised key filter, differentiable in its scales (arXiv 2509.12746).

    1 d_y^+ T, 2 d_x^- T, 3 d_y^- T, 4 d_x^+ T, 5 d_x T, 6 d_y T, 7 delta - alpha Lap5 T, 8 T. The learned filters 2
    and 3 have the opposite sign.

    Args:
        index: 1 to 8.
        sigma_x: standard deviation along x in pixels, (...).
        sigma_y: along y; None: as sigma_x. Filter 7 has one scale, sigma_x.
        alpha: factor of the Laplacian in filter 7; None: the published 0.5256. The others have none.
        size: odd side of the array.
        y_up: y points upwards, against the rows. False lets it run down with them, which turns filters 1, 3 and 6
            upside down (the convention of the release's replacement code).
        boundary: `reflect`: T is cut to the window, then differenced with its edge samples repeated (the published
            fits; filter 7 keeps its published zero border); `zero`: the same with zeros; `exact`: the difference of the
            uncut T.
        normalize: None; `l2`: unit l2 norm; `affine`: mean removed, then unit l2 norm.
        points: as in `discrete_gaussian`.

    Returns:
        (..., size, size), of sigma's dtype (float64 for numbers), as a convolution layer stores it.

    Raises:
        ConfigError: an index outside 1..8, an even size, an alpha for another filter than 7.
    """
    if index not in range(1, COUNT + 1):
        raise ConfigError(f"index: expected a key filter from 1 to 8, got {index}")
    if normalize not in (None, "l2", "affine"):
        raise ConfigError(f"normalize: expected null, l2 or affine, got {normalize!r}")
    if index == 7:
        border: Boundary = "exact" if boundary == "exact" else "zero"
        filters = sharpened_delta(sigma_x, PUBLISHED_ALPHA["B"] if alpha is None else alpha, size, border, points)
    else:
        if alpha is not None:
            raise ConfigError(f"alpha: only filter 7 has one, got {alpha} for filter {index}")
        along_y, along_x = ALONG[index]
        sign = -1 if y_up and along_y != "none" else 1
        row_kind = _MIRRORED.get(along_y, along_y) if y_up else along_y
        column = smoothed_difference(sigma_x if sigma_y is None else sigma_y, row_kind, size, boundary, points)
        row = smoothed_difference(sigma_x, along_x, size, boundary, points)
        filters = sign * outer(column, row)
    if normalize == "l2":
        filters = filters / torch.linalg.vector_norm(filters, dim=(-2, -1), keepdim=True)
    return remove_mean(filters) if normalize == "affine" else filters


def key_filters_at(
    index: Tensor, sigma_x: Tensor, sigma_y: Tensor, differences: Tensor, points: int | None = None
) -> Tensor:
    """`key_filter` of many indices at once, with its defaults; filter 7 has the one scale sigma_x.

    Every filter is a sum of two products of columns and rows, T_y D_column and T_x D_row, and for filter 7 a unit
    impulse; which differences D these are is looked up by the index, so that nothing is decided by its values.

    Args:
        index: (n,) int64, 1 to 8.
        sigma_x: (n,) standard deviations along x in pixels.
        sigma_y: (n,) along y.
        differences: (4, 8, size, size) from `difference_tables`, in sigma's dtype.
        points: as in `discrete_gaussian`.

    Returns:
        (n, size, size), of sigma's dtype.
    """
    size, sharpens = differences.shape[-1], index == 7
    table = differences[:, index - 1]
    sigma_y = torch.where(sharpens, sigma_x, sigma_y)
    column, row = (discrete_gaussian(s, size // 2, points)[None, :, None] for s in (sigma_y, sigma_x))
    columns, rows = column @ table[:2].mT, row @ table[2:].mT  # (2, n, 1, size)
    filters = (columns.mT @ rows).sum(0)
    line = torch.arange(size, device=filters.device) == size // 2
    impulse = (line & line[:, None]).to(filters)
    return torch.where(sharpens[:, None, None], impulse - PUBLISHED_ALPHA["B"] * filters, filters)


def difference_tables(size: int) -> list[list[list[list[float]]]]:
    """The differences of `key_filters_at`, (4, 8, size, size): of two columns, then of two rows, by filter.

    All are 0, 1/2, 1 or 2 in size, which every dtype holds.
    """
    check_odd(size)
    same, none = difference_rows("none", size, "reflect"), [[0.0] * size] * size
    tables: list[list[list[list[float]]]] = [[], [], [], []]
    for filter_ in range(1, COUNT + 1):
        if filter_ == 7:
            second = difference_rows("second", size, "zero")
            parts = [second, same, same, second]
        else:
            along_y, along_x = ALONG[filter_]
            column = difference_rows(_MIRRORED.get(along_y, along_y), size, "reflect")
            sign = 1.0 if along_y == "none" else -1.0
            column = [[sign * value for value in line] for line in column]
            parts = [column, none, difference_rows(along_x, size, "reflect"), none]
        for table, part in zip(tables, parts, strict=True):
            table.append(part)
    return tables


def idealised_bank(method: str, size: int = 7) -> Tensor:
    """The eight filters with the published parameters of a method, mean removed, unit l2 norm.

    Args:
        method: A, B, C1, C2, D1 or D2.
        size: odd side; below 7 the centre of the 7x7 array, above it the same operators in a larger window.

    Returns:
        (8, size, size) float64.

    Raises:
        ConfigError: an unknown method or an even size.
    """
    if method not in METHODS:
        raise ConfigError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    bank = torch.stack([fit.template(max(size, 7)) for fit in published_fits(method)])
    return resize_bank(bank, size)


def published_fits(method: str) -> list[KeyFilterFit]:
    """The published parameters of a method as records, without an objective (NaN)."""
    scales = PUBLISHED_SIGMAS[method]
    return [
        KeyFilterFit(i, sx, sy, PUBLISHED_ALPHA[method] if i == 7 else None, math.nan)
        for i, (sx, sy) in enumerate(scales, start=1)
    ]


def resize_bank(bank: Tensor, size: int) -> Tensor:
    """A bank (m, k, k) cut to its centre or padded with zeros to (m, size, size), mean removed, unit l2 norm.

    Raises:
        ConfigError: a bank of another shape, or an even size or side.
    """
    if bank.ndim != 3 or bank.shape[1] != bank.shape[2] or bank.shape[1] % 2 == 0 or len(bank) == 0:
        raise ConfigError(f"bank: expected filters (m, k, k) with k odd, got {tuple(bank.shape)}")
    if size < 1 or size % 2 == 0:
        raise ConfigError(f"size: expected an odd side, got {size}: a filter of an even side has no centre")
    margin = (size - bank.shape[1]) // 2
    return remove_mean(torch.nn.functional.pad(bank, (margin,) * 4))


def load_filters(path: str | Path) -> Tensor:
    """Learned filters from the authors' text file, or from an `.npz` with the array `learned`.

    The text file holds eight blocks of seven rows of seven numbers; other words are passed over.

    Returns:
        (8, 7, 7) float64, index 0 to 7 = filter 1 to 8.

    Raises:
        DataError: no such file, or not eight 7x7 filters.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                if "learned" not in arrays:
                    raise DataError(f"{path} has no array 'learned', only {', '.join(arrays)}")
                values = arrays["learned"]
        else:
            rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
            values = np.array([[float(word) for word in row] for row in rows if len(row) == 7])
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as key filters ({type(error).__name__}: {error})") from error
    if values.size != 8 * 49:
        raise DataError(f"{path}: expected eight 7x7 filters, got an array of shape {values.shape}")
    return torch.as_tensor(np.ascontiguousarray(values, dtype=np.float64)).view(8, 7, 7)
