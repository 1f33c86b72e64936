"""Banks of filters for depthwise convolutions: finding the layers, matching, and every bank that is compared.

A filter y is replaced by a x + b, with x the bank's best filter (mean 0, norm 1), a = <x, y> and b = mean(y); sign and
scale are free (docs/master_key.md, "Matching and extracting"). Explained energy is a^2 / |y - mean(y)|^2.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from framework.errors import ConfigError, DataError
from framework.nn.filters.dictionaries import dictionary, refit_bank
from framework.nn.filters.key_filters import METHODS, idealised_bank, resize_bank
from framework.nn.filters.scale_space import remove_mean

BANKS = ("learned", *METHODS, "random", "k-lines", "sigma-network", "sigma-layer", "sigma-filter")
_RANDOM = re.compile(r"random(-\d+)?")


@dataclass(frozen=True)
class Match:
    """The best bank filter of every filter: y = scale * bank[index] + offset + rest.

    Attributes:
        index: (n,) int64, position in the bank.
        scale: (n,) float64, a; negative where the filter is reversed.
        offset: (n,) float64, b, the filter's mean.
        energy: (n,) float64 in [0, 1], the explained share of the energy left after removing the mean; NaN for a
            constant filter, which has none.
        total: (n,) float64, that energy.
    """

    index: Tensor
    scale: Tensor
    offset: Tensor
    energy: Tensor
    total: Tensor

    def explained(self) -> float:
        """Explained share of all filters' energy together, in [0, 1]; NaN if they have none."""
        return float(self.scale.square().sum() / self.total.sum())


def match_filters(filters: Tensor, bank: Tensor) -> Match:
    """Matches filters to a bank, in float64.

    Args:
        filters: (n, k, k).
        bank: (m, k, k), each with mean 0 and unit l2 norm.

    Raises:
        ConfigError: shapes that do not go together, or a bank that is not normalised.
        DataError: filters that are not finite.
    """
    if filters.ndim != 3 or bank.ndim != 3 or filters.shape[1:] != bank.shape[1:] or len(bank) == 0:
        raise ConfigError(
            f"bank: expected filters (n, k, k) and a bank (m, k, k) of one size, got {tuple(filters.shape)} and "
            f"{tuple(bank.shape)}"
        )
    x, y = bank.detach().cpu().double().flatten(1), filters.detach().cpu().double().flatten(1)
    if not torch.isfinite(y).all():
        raise DataError("filters: expected finite weights, got NaN or infinity")
    if float(x.mean(1).abs().max()) > 1e-6 or float((x.norm(dim=1) - 1).abs().max()) > 1e-6:
        raise ConfigError("bank: expected filters of mean 0 and unit l2 norm, got others; pass it through remove_mean")
    offset = y.mean(1)
    centred = y - offset[:, None]
    total = centred.square().sum(1)
    # energies at the level of rounding belong to constant filters
    total = torch.where(total <= (1e-12 * y.square().sum(1)), 0.0, total)
    scale, index = _best_by_size(centred @ x.T)
    scale = torch.where(total > 0, scale, 0.0)
    energy = torch.where(total > 0, scale.square() / total.clamp_min(torch.finfo(torch.float64).tiny), torch.nan)
    return Match(index, scale, offset, energy, total)


def approximate(match: Match, bank: Tensor) -> Tensor:
    """The filters that a match stands for, a x + b: (n, k, k) float64."""
    return match.scale[:, None, None] * bank.double()[match.index] + match.offset[:, None, None]


def _best_by_size(products: Tensor) -> tuple[Tensor, Tensor]:
    index = products.abs().argmax(1)
    return products.gather(1, index[:, None]).squeeze(1), index


# ------------------------------------------------------------------------------------------------ layers of a network


def depthwise_convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """The depthwise convolutions of a network with kernels above 1x1, by name.

    Raises:
        ConfigError: there is none, or one has an even or oblong kernel.
    """
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 and max(module.kernel_size) > 1
    }
    if not found:
        raise ConfigError(
            f"{type(network).__name__} has no depthwise convolution (torch.nn.Conv2d with groups = in_channels and a "
            "kernel above 1x1), so there is nothing to replace"
        )
    for name, module in found.items():
        _check_kernel(name, tuple(module.kernel_size))
    return found


def depthwise_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The depthwise kernels of a bare state_dict, name -> (n, k, k): every weight (n, 1, k, k) with n and k above 1.

    Raises:
        ConfigError: there is none, or one is even or oblong.
    """
    found = {
        name: weight.flatten(0, 1)
        for name, weight in state_dict.items()
        if isinstance(weight, Tensor)
        and weight.ndim == 4
        and weight.shape[1] == 1
        and len(weight) > 1
        and max(weight.shape[2:]) > 1
    }
    if not found:
        raise ConfigError(
            f"state_dict: none of the {len(state_dict)} tensors is a depthwise kernel of shape (n, 1, k, k)"
        )
    for name, weight in found.items():
        _check_kernel(name, tuple(weight.shape[1:]))
    return found


def _check_kernel(name: str, size: tuple[int, ...]) -> None:
    if size[0] != size[1] or size[0] % 2 == 0:
        raise ConfigError(
            f"{name}: its kernel is {size[0]}x{size[1]}; key filters need square kernels with an odd "
            "side, which have a centre"
        )


# --------------------------------------------------------------------------------------------------------- the banks


def make_bank(
    name: str, weights: Mapping[str, Tensor], learned: Tensor | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """A bank for every layer.

    Args:
        name: `learned` (the eight extracted filters); a published method `A` to `D2`; `random` or `random-N` (the
            control: eight normal filters; N draws others); `k-lines` (eight directions of this network's filters, per
            kernel size); `sigma-network` and `sigma-layer` (the eight operators with scales refitted to the network,
            per kernel size, or to each layer); `sigma-filter` (every filter its own operator and scales).
        weights: layer -> filters (n, k, k).
        learned: (8, 7, 7), for `learned`.
        seed: of `random` and `k-lines`.

    Returns:
        layer -> (m, k, k) float64, mean 0, unit l2 norm.

    Raises:
        ConfigError: an unknown bank, or `learned` without filters.
    """
    if name not in BANKS and not _RANDOM.fullmatch(name):
        raise ConfigError(f"banks: expected some of {', '.join(BANKS)}, got {name!r}")
    if name == "learned":
        if learned is not None:
            return {layer: resize_bank(learned, f.shape[-1]) for layer, f in weights.items()}
        raise ConfigError(
            "banks: 'learned' needs the extracted filters, which are not shipped: give filters_file, the authors' "
            "8Filters.txt or an .npz with the array 'learned'"
        )
    if name == "sigma-layer":
        return {layer: refit_bank(_equal_filters([f])) for layer, f in weights.items()}
    by_size: dict[int, list[Tensor]] = {}
    for filters in weights.values():
        by_size.setdefault(filters.shape[-1], []).append(filters)
    banks = {}
    for size, parts in by_size.items():
        if name.startswith("random"):
            banks[size] = random_bank(size, seed + int(name.partition("-")[2] or 0))
        elif name == "k-lines":
            banks[size] = key_lines(_equal_filters(parts), seed=seed)
        elif name == "sigma-network":
            banks[size] = refit_bank(_equal_filters(parts))
        elif name == "sigma-filter":
            banks[size] = dictionary(size).flatten(0, 1)
        else:
            banks[size] = idealised_bank(name, size)
    return {layer: banks[filters.shape[-1]] for layer, filters in weights.items()}


def bank_parameters(name: str, weights: Mapping[str, Tensor]) -> int:
    """Numbers that the replaced filters need, operator indices aside: a, b per filter, and the bank or its scales.

    A bank of operators has sigma_x and sigma_y seven times and (sigma, alpha) of filter 7, 16 numbers; with C2 and D2,
    where sigma_x = sigma_y, it has 9.
    """
    filters = sum(len(f) for f in weights.values())
    sizes = {f.shape[-1] for f in weights.values()}
    if name == "original":
        return sum(f.numel() for f in weights.values())
    if name == "sigma-filter":
        return 4 * filters
    if name == "learned" or name.startswith("random"):
        own = sum(8 * k * k for k in ({7} if name == "learned" else sizes))
    elif name == "k-lines":
        own = sum(8 * k * k for k in sizes)
    else:
        scales = 9 if name in ("C2", "D2") else 16
        own = scales * (len(weights) if name == "sigma-layer" else len(sizes) if name == "sigma-network" else 1)
    return 2 * filters + own


def random_bank(size: int, seed: int = 0, count: int = 8) -> Tensor:
    """The control: `count` filters of independent normal values, mean removed, unit l2 norm; (count, size, size)."""
    generator = torch.Generator().manual_seed(1000 * seed + size)
    return remove_mean(torch.randn(count, size, size, generator=generator, dtype=torch.float64))


def key_lines(filters: Tensor, count: int = 8, seed: int = 0, restarts: int = 4, steps: int = 100) -> Tensor:
    """The `count` directions that explain most energy: sign-free spherical k-means ("k-lines").

    Each centroid is the leading singular vector of its cluster; a start draws its centroids from the filters with
    probability proportional to the energy that the earlier ones leave unexplained. The best restart is returned, its
    lines in order of the energy of their clusters.

    Args:
        filters: (n, k, k), any scale: larger filters count more.
        count: number of directions.
        seed: of the starts.
        restarts: number of starts.
        steps: at most so many rounds of each.

    Returns:
        (count, k, k) float64, mean 0, unit l2 norm.

    Raises:
        DataError: fewer filters that are not constant than `count`.
    """
    y = filters.detach().cpu().double()
    size = y.shape[-1]
    y = (y - y.mean((1, 2), keepdim=True)).flatten(1)
    energy = y.square().sum(1)
    y, energy = y[energy > 0], energy[energy > 0]
    if len(y) < count:
        raise DataError(f"banks: k-lines: {len(y)} filters that are not constant are too few for {count} directions")
    generator = torch.Generator().manual_seed(seed)
    best, best_energy = torch.empty(0), -1.0
    for _ in range(restarts):
        lines = _draw_lines(y, energy, count, generator)
        explained = -1.0
        for _ in range(steps):
            products = y @ lines.T
            index = products.abs().argmax(1)
            now = float(products.gather(1, index[:, None]).square().sum())
            if now <= explained * (1 + 1e-9):
                break
            explained = now
            for j in range(count):
                if (members := y[index == j]).numel():
                    lines[j] = torch.linalg.eigh(members.T @ members).eigenvectors[:, -1]
        if explained > best_energy:
            best, best_energy = lines.clone(), explained
    products = y @ best.T
    index = products.abs().argmax(1)
    share = torch.zeros(count, dtype=torch.float64).scatter_add(
        0, index, products.gather(1, index[:, None]).squeeze(1).square()
    )
    best = best[share.argsort(descending=True)]
    # an eigenvector's sign is arbitrary: the largest tap is made positive
    sign = best.gather(1, best.abs().argmax(1, keepdim=True)).sign()
    return remove_mean((best * sign).view(count, size, size))


def _draw_lines(y: Tensor, energy: Tensor, count: int, generator: torch.Generator) -> Tensor:
    left = energy.clone()
    lines: list[Tensor] = []
    for _ in range(count):
        chosen = int(torch.multinomial(left.clamp_min(0) + 1e-12 * energy, 1, generator=generator))
        lines.append(y[chosen] / y[chosen].norm())
        left = torch.minimum(left, energy - (y @ lines[-1]).square())
    return torch.stack(lines)


def _equal_filters(parts: Sequence[Tensor]) -> Tensor:
    """All layers' filters with mean 0 and unit norm: what counts is each filter's own explained share."""
    return torch.cat([remove_mean(filters.detach().cpu().double()) for filters in parts])
