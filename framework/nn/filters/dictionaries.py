"""The eight operators at many scales: the dictionary of templates, and the scales that fit a network's filters best."""

import torch
from torch import Tensor

from framework.nn.filters.key_filters import idealised_bank, key_filter, resize_bank

_ALPHAS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0)


def dictionary_sigmas(size: int, count: int = 20) -> Tensor:
    """The scales of a dictionary: 0 and `count` - 1 values from 0.2 to the kernel's side (at least 3), geometric."""
    return torch.cat(
        [torch.zeros(1), torch.logspace(-0.69897, torch.log10(torch.tensor(max(3.0, size))), count - 1)]
    ).double()


def dictionary(size: int) -> Tensor:
    """Every operator at every pair of scales, from which free scales are chosen (docs/master_key.md, "Matching and
    extracting").

    Args:
        size: odd side of the filters.

    Returns:
        (8, S * S, size, size) float64, mean 0, unit l2 norm; entry (i, p * S + q) has sigma_x = sigmas[p], sigma_y =
        sigmas[q] of `dictionary_sigmas`. Filter 7 has one scale and eight values of alpha, repeated to fill its row.
    """
    return torch.stack([templates(index, *dictionary_parameters(index, size), size) for index in range(1, 9)])


def dictionary_parameters(index: int, size: int) -> tuple[Tensor, Tensor]:
    """(sigma_x, sigma_y) of an operator's dictionary row, or for filter 7 (sigma, alpha); each (S * S,)."""
    sigmas = dictionary_sigmas(size)
    first = sigmas.repeat_interleave(len(sigmas))
    if index != 7:
        return first, sigmas.repeat(len(sigmas))
    alphas = torch.tensor(_ALPHAS, dtype=torch.float64)
    return first, alphas.repeat(len(first) // len(alphas) + 1)[: len(first)]


def templates(index: int, first: Tensor, second: Tensor, size: int) -> Tensor:
    window = max(size, 7)
    if index == 7:
        full = key_filter(7, first, alpha=second, size=window)
    else:
        full = key_filter(index, first, second, size=window)
    return resize_bank(full, size)


def refit_bank(filters: Tensor, steps: int = 50) -> Tensor:
    """The eight operators with the scales that explain most of the given filters' energy.

    Alternates between giving every operator its best scales in the dictionary and assigning every filter to its best
    operator, once from the assignment of Method B and once from that of the whole dictionary; keeps the better end, and
    refines its scales between the dictionary's.

    Args:
        filters: (n, k, k), any scale: larger filters count more.
        steps: at most so many rounds.

    Returns:
        (8, k, k) float64, mean 0, unit l2 norm, filters 1 to 8 in order.
    """
    return refit(filters, steps)[0]


def refit(filters: Tensor, steps: int = 50) -> tuple[Tensor, Tensor]:
    """As `refit_bank`, with the scales: (8, k, k), and (8, 2) sigma_x and sigma_y, for filter 7 sigma and alpha."""
    y = filters.detach().cpu().double()
    size = y.shape[-1]
    y = (y - y.mean((1, 2), keepdim=True)).flatten(1)
    entries = dictionary(size).flatten(2)
    parameters = [torch.stack(dictionary_parameters(i, size), 1) for i in range(1, 9)]
    starts = [y @ idealised_bank("B", size).flatten(1).T, torch.stack([(y @ e.T).abs().amax(1) for e in entries], 1)]
    chosen, covariances, explained = [-1] * 8, torch.empty(0), -1.0
    for products in starts:
        found = _alternate(y, entries, products.abs().argmax(1), steps)
        if found[2] > explained:
            chosen, covariances, explained = found
    fits = []
    for j in range(8):
        start = parameters[j][chosen[j]] if chosen[j] >= 0 else torch.tensor([1.0, 1.0 if j != 6 else 0.5]).double()
        fits.append(_refine(j + 1, start, covariances[j], size))
    scales = torch.stack(fits)
    filters_ = [templates(j + 1, scales[j, :1], scales[j, 1:], size)[0] for j in range(8)]
    return torch.stack(filters_), scales


def _alternate(y: Tensor, entries: Tensor, index: Tensor, steps: int) -> tuple[list[int], Tensor, float]:
    """Dictionary entry (-1: unused) and covariance of every operator's filters, and the energy explained."""
    chosen, explained = [-1] * 8, -1.0
    bank = torch.zeros(8, y.shape[1], dtype=torch.float64)
    covariances = torch.zeros(8, y.shape[1], y.shape[1], dtype=torch.float64)
    for _ in range(steps):
        for j in range(8):
            members = y[index == j]
            covariances[j] = members.T @ members
            if len(members):
                chosen[j] = int(_quadratic(entries[j], covariances[j]).argmax())
                bank[j] = entries[j, chosen[j]]
        products = y @ bank.T
        index = products.abs().argmax(1)
        now = float(products.gather(1, index[:, None]).square().sum())
        if now <= explained * (1 + 1e-9):
            break
        explained = now
    return chosen, covariances, explained


def _quadratic(templates: Tensor, covariance: Tensor) -> Tensor:
    return ((templates @ covariance) * templates).sum(-1)


def _refine(index: int, start: Tensor, covariance: Tensor, size: int) -> Tensor:
    """The best scales near a dictionary entry: ever finer 9 x 9 grids."""
    centre, ratio = start.clone(), 1.3
    lines = torch.linspace(-1, 1, 9, dtype=torch.float64)
    for _ in range(8):
        axes = [(c + 0.05 * (ratio - 1)) * ratio**lines - 0.05 * (ratio - 1) for c in centre]
        first, second = (a.flatten().clamp_min(0) for a in torch.meshgrid(*axes, indexing="ij"))
        values = _quadratic(templates(index, first, second, size).flatten(1), covariance)
        best = int(values.argmax())
        centre = torch.stack([first[best], second[best]])
        ratio = 1 + (ratio - 1) * 0.5
    return centre
