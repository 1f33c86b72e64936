"""One-way waves in FINOLA's maps: identifiable speeds, how far the PDE holds, how far the steps commute.

With z_x = A zhat and z_y = B zhat the map obeys z_x = Q z_y, Q = A B^-1, whose eigenvalues are wave speeds (arXiv
2310.12976). zhat is orthogonal to the all-ones vector, so A + u 1^T moves no map although it moves eig(A B^-1); with
normalisation everything here is therefore written on the complement of that vector (docs/finola.md, "Wave speeds").
Without it a step acts on z itself, and the whole matrices count.
"""

import torch
from torch import Tensor

from framework.errors import ConfigError
from framework.nn.waves.finola import Finola, normalized


def complement_basis(channels: int, like: Tensor) -> Tensor:
    """U: (C, C-1) with orthonormal columns orthogonal to the all-ones vector (Helmert's), in `like`'s type and device.

    Raises:
        ConfigError: fewer than 2 channels, where nothing is left.
    """
    if channels < 2:
        raise ConfigError(f"channels: expected at least 2, got {channels}; one channel has no wave speed")
    k = torch.arange(1, channels, dtype=torch.float64, device=like.device)
    rows = torch.arange(channels, device=like.device)[:, None]
    basis = torch.where(rows < k, 1.0, torch.where(rows == k, -k, 0.0)) / (k * (k + 1)).sqrt()
    return basis.to(like.dtype)


def wave_speeds(a: Tensor, b: Tensor, normalize: bool = True) -> Tensor:
    """Speeds of the one-way waves z_x = Q z_y: the eigenvalues of (U^T A U)(U^T B U)^-1, the projected pencil.

    They do not move when A or B is replaced by A + u 1^T, which leaves every map as it is, nor by A + 1 u^T.

    Args:
        a: (C, C) real, the matrix of the steps to the right.
        b: (C, C) real, the matrix of the steps down.
        normalize: False for steps on z itself: the eigenvalues of A B^-1, where A + u 1^T is another map.

    Returns:
        (C - 1,), without normalisation (C,), complex128 in cells per cell, sorted by modulus, then by angle.

    Raises:
        ConfigError: matrices of other or different shapes, C < 2, values that are not finite, or a (projected) B that
            is singular.
    """
    if a.dim() != 2 or a.shape != b.shape or a.shape[0] != a.shape[1]:
        raise ConfigError(f"a and b: expected two (C, C) matrices, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.detach().double(), b.detach().double()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ConfigError("a and b: expected finite matrices, got NaN or infinite entries")
    basis = _seen(len(a), a, normalize)
    a, b = basis.T @ a @ basis, basis.T @ b @ basis
    singular = torch.linalg.svdvals(b)
    if singular[-1] <= len(b) * torch.finfo(b.dtype).eps * singular[0]:
        kind = "projected matrix" if normalize else "matrix"
        raise ConfigError(f"b: the {kind} is singular, so the speeds are not finite; train it, or swap a and b")
    speeds = torch.linalg.eigvals(torch.linalg.solve(b, a, left=False))
    order = sorted(range(len(speeds)), key=lambda i: (speeds[i].abs().item(), speeds[i].angle().item()))
    return speeds[order]


def _seen(channels: int, like: Tensor, normalize: bool) -> Tensor:
    """A basis of what the matrices act on: the complement of the all-ones vector, or all without normalisation."""
    if normalize:
        return complement_basis(channels, like)
    return torch.eye(channels, dtype=like.dtype, device=like.device)


def pde_residual(layer: Finola, z: Tensor, start: tuple[int, int] | None = None) -> Tensor:
    """How far a map is from z_x = Q z_y: ||z_x - Q z_y|| / ||z_x|| in every cell.

    The derivatives are differences outwards from the start, and Q = A U (B U)^+ with the matrices of the cell's
    quadrant, or Q = A B^+ without normalisation. 0 where the PDE holds; a map that has nothing to do with it has about
    sqrt(1 + ||Q z_y||^2 / ||z_x||^2).

    Args:
        layer: whose matrices the map was grown with.
        z: (B, C, H, W) map with one path, any real dtype.
        start: (row, column) where the map was started; None: (H // 2, W // 2).

    Returns:
        (B, H, W) float64; NaN at the two borders of each quadrant that have no outward neighbour.

    Raises:
        ConfigError: a map of other channels.
    """
    if z.dim() != 4 or z.shape[1] != layer.channels:
        raise ConfigError(f"z: expected (B, {layer.channels}, H, W), got {tuple(z.shape)}")
    z = z.detach().double().movedim(1, -1)
    height, width = z.shape[1:3]
    row, col = start or (height // 2, width // 2)
    right, left, down, up = layer.directional().detach().double()
    basis = _seen(layer.channels, z, layer.normalize)
    result = z.new_full(z.shape[:3], float("nan"))
    rows = {1: slice(row, height), -1: slice(0, row + 1)}
    cols = {1: slice(col, width), -1: slice(0, col + 1)}
    for sx, a in ((1, right), (-1, left)):
        for sy, b in ((1, down), (-1, up)):
            part, into = z[:, rows[sy], cols[sx]], result[:, rows[sy], cols[sx]]
            flips = [axis for axis, sign in ((1, sy), (2, sx)) if sign < 0]
            part = part.flip(flips)
            z_x, z_y = part[:, :-1, 1:] - part[:, :-1, :-1], part[:, 1:, :-1] - part[:, :-1, :-1]
            q = (a @ basis) @ torch.linalg.pinv(b @ basis)
            ratio = (z_x - z_y @ q.T).norm(dim=-1) / z_x.norm(dim=-1)
            whole = z.new_full(part.shape[:3], float("nan"))
            whole[:, :-1, :-1] = ratio
            into.copy_(torch.where(into.isnan(), whole.flip(flips), into))
    return result


def commutator(layer: Finola, z: Tensor) -> Tensor:
    """How far a step right and a step down depend on their order.

    ||phi_A phi_B z - phi_B phi_A z|| / ||(phi_A phi_B z + phi_B phi_A z) / 2 - z||. Zero for all z would make the
    average of the two routes redundant.

    Args:
        layer: whose matrices are used.
        z: (..., C) states, float32 or float64.

    Returns:
        (...) like `z`.
    """
    a, _, b, _ = layer.directional().to(z.dtype)

    def step(state: Tensor, matrix: Tensor) -> Tensor:
        return state + (normalized(state, layer.eps)[0] if layer.normalize else state) @ matrix.T

    ab, ba = step(step(z, b), a), step(step(z, a), b)
    return (ab - ba).norm(dim=-1) / ((ab + ba) / 2 - z).norm(dim=-1)
