"""Wave speeds, PDE residual and commutator against scipy, closed forms and invariances."""

import numpy as np
import pytest
import scipy.linalg
import torch

from framework.errors import ConfigError
from framework.nn import Finola, commutator, complement_basis, pde_residual, wave_speeds


def matrices(channels=12, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    a, b = torch.randn(2, channels, channels, dtype=torch.float64)
    return a, b


def by_size(values: np.ndarray) -> np.ndarray:
    return values[np.lexsort((np.angle(values).round(6), np.abs(values).round(6)))]


@pytest.mark.parametrize("channels", [2, 3, 17])
def test_the_basis_is_orthonormal_and_orthogonal_to_ones(channels) -> None:
    basis = complement_basis(channels, torch.zeros((), dtype=torch.float64)).numpy()
    np.testing.assert_allclose(basis.T @ basis, np.eye(channels - 1), atol=1e-14)
    np.testing.assert_allclose(basis.sum(0), 0, atol=1e-14)


def test_speeds_are_scipys_eigenvalues_of_the_projected_pencil() -> None:
    a, b = matrices()
    basis = scipy.linalg.null_space(np.ones((1, 12)))  # another basis: the spectrum must not depend on it
    expected = scipy.linalg.eigvals(basis.T @ a.numpy() @ basis, basis.T @ b.numpy() @ basis)
    ours = wave_speeds(a, b).numpy()
    assert ours.shape == (11,)
    np.testing.assert_allclose(by_size(ours), by_size(expected), rtol=1e-9)


def test_speeds_do_not_move_with_changes_that_leave_the_maps_alone() -> None:
    a, b = matrices(64)
    u, v, ones = torch.randn(64, 1, dtype=torch.float64), torch.randn(64, 1, dtype=torch.float64), torch.ones(1, 64)
    before = wave_speeds(a, b).numpy()
    after = wave_speeds(a + 5 * u @ ones.double(), b - 3 * v @ ones.double()).numpy()
    np.testing.assert_allclose(by_size(after), by_size(before), rtol=0, atol=1e-10 * np.abs(before).max())
    # the full pencil is not identifiable: the same change moves its eigenvalues
    full = [np.sort(np.abs(scipy.linalg.eigvals(x.numpy(), b.numpy()))) for x in (a, a + 5 * u @ ones.double())]
    assert np.median(np.abs(full[1] - full[0]) / full[0]) > 0.01


def test_equal_matrices_have_unit_speeds_and_scaled_ones_their_ratio() -> None:
    a, _ = matrices()
    np.testing.assert_allclose(wave_speeds(a, a).numpy(), 1, atol=1e-9)
    np.testing.assert_allclose(wave_speeds(-3 * a, a).numpy(), -3, atol=1e-8)


def test_speeds_given_by_construction_are_found() -> None:
    """A = P diag(l) P^-1 B on the complement has the speeds l."""
    channels, speeds = 6, torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    basis = complement_basis(channels, speeds)
    torch.manual_seed(0)
    p, small = torch.randn(2, 5, 5, dtype=torch.float64)
    a = basis @ (p @ torch.diag(speeds) @ torch.linalg.inv(p) @ small) @ basis.T
    np.testing.assert_allclose(wave_speeds(a, basis @ small @ basis.T).numpy(), speeds.numpy(), atol=1e-9)


def test_two_channels_have_one_speed() -> None:
    # 1^perp is spanned by (1, -1)/sqrt(2), where A acts as (a00 - a01 - a10 + a11) / 2
    a = torch.tensor([[1.0, 2.0], [3.0, 10.0]])
    np.testing.assert_allclose(wave_speeds(a, torch.eye(2)).numpy(), [3.0], atol=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.eye(3), torch.eye(4), "two .C, C. matrices"),
        (torch.eye(1), torch.eye(1), "channels: expected at least 2"),
        (torch.eye(3), torch.ones(3, 3), "projected matrix is singular"),
        (torch.full((3, 3), float("nan")), torch.eye(3), "finite matrices"),
    ],
)
def test_bad_matrices_are_named(a, b, message) -> None:
    with pytest.raises(ConfigError, match=message):
        wave_speeds(a, b)


def test_the_pde_holds_for_a_plane_wave_in_every_quadrant() -> None:
    """B = A: any map of row + column obeys z_x = z_y, and with A- = -A+ the outward differences mirror it."""
    layer = Finola(5, matrices=1).double()
    ramp = torch.arange(7.0, dtype=torch.float64)
    direction = layer.weight[0].detach() @ torch.tensor([1.0, -1, 2, -2, 0], dtype=torch.float64)  # in A 1^perp
    z = (ramp[:, None] + ramp[None, :])[None, None] * direction[None, :, None, None]
    residual = pde_residual(layer, z)
    assert torch.nan_to_num(residual).max() < 1e-10
    # mirrored in one axis, z_x = -z_y: as wrong as can be
    assert torch.nan_to_num(pde_residual(layer, z.flip(2)), nan=2.0).sub(2).abs().max() < 1e-10


def test_the_residual_of_a_grown_map_against_one_cell_written_out() -> None:
    torch.manual_seed(0)
    layer = Finola(4, init_std=0.5).double()
    z = layer(torch.randn(2, 4, dtype=torch.float64), (6, 6)).detach()
    right, _, _, up = layer.directional().detach().numpy()
    basis = scipy.linalg.null_space(np.ones((1, 4)))
    q = (right @ basis) @ np.linalg.pinv(up @ basis)
    cell = z[1].numpy()
    z_x, z_y = cell[:, 2, 5] - cell[:, 2, 4], cell[:, 1, 4] - cell[:, 2, 4]  # right of and above the start (3, 3)
    expected = np.linalg.norm(z_x - q @ z_y) / np.linalg.norm(z_x)
    residual = pde_residual(layer, z)
    assert residual.shape == (2, 6, 6)
    assert float(residual[1, 2, 4]) == pytest.approx(expected, rel=1e-9)


def test_the_column_first_half_obeys_z_x_exactly_but_the_average_does_not() -> None:
    torch.manual_seed(0)
    layer = Finola(6, "column_first").double()
    z = layer(torch.randn(1, 6, dtype=torch.float64), (5, 5), (0, 0)).detach()
    zhat = (z - z.mean(1, keepdim=True)) / (z.var(1, keepdim=True, unbiased=False) + layer.eps).sqrt()
    step = torch.einsum("ij,bjhw->bihw", layer.weight[0].detach(), zhat)
    assert (z[..., 1:] - z[..., :-1] - step[..., :-1]).abs().max() < 1e-12
    assert (
        z[:, :, 1:] - z[:, :, :-1] - torch.einsum("ij,bjhw->bihw", layer.weight[2].detach(), zhat)[:, :, :-1]
    ).abs().max() > 1e-3


def test_without_normalisation_the_whole_matrices_count() -> None:
    """B = 2 A, row by row and written out: z_x = z_y / 2 exactly along the start's column."""
    torch.manual_seed(0)
    layer = Finola(5, "row_first", matrices=4, normalize=False, init_std=0.3).double()
    with torch.no_grad():
        layer.weight[2:] = 2 * layer.weight[:2]
    a = layer.weight[0].detach().numpy()
    state = np.ones(5)  # along the all-ones vector, which normalisation would take away
    z = np.zeros((5, 4, 4))
    for row in range(4):
        cell = state
        for col in range(4):
            z[:, row, col] = cell
            cell = cell + a @ cell
        state = state + 2 * a @ state
    np.testing.assert_allclose(layer(torch.ones(1, 5).double(), (4, 4), (0, 0))[0].detach().numpy(), z, atol=1e-12)
    np.testing.assert_allclose(z[:, :3, 1] - z[:, :3, 0], (z[:, 1:, 0] - z[:, :3, 0]) / 2, atol=1e-12)
    residual = pde_residual(layer, torch.tensor(z)[None], (0, 0))[0, :3, :3].numpy()
    np.testing.assert_allclose(residual[:, 0], 0, atol=1e-10)
    right, _, down, _ = layer.directional()
    np.testing.assert_allclose(wave_speeds(right, down, normalize=False).numpy(), np.full(5, 0.5), atol=1e-10)


def test_speeds_without_normalisation_are_scipys_of_the_whole_pencil() -> None:
    a, b = matrices()
    ours = wave_speeds(a, b, normalize=False).numpy()
    assert ours.shape == (12,)
    np.testing.assert_allclose(by_size(ours), by_size(scipy.linalg.eigvals(a.numpy(), b.numpy())), rtol=1e-9)
    with pytest.raises(ConfigError, match="b: the matrix is singular"):
        wave_speeds(a, torch.ones_like(a), normalize=False)


def test_the_commutator_vanishes_for_equal_matrices_only() -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 8, dtype=torch.float64)
    assert commutator(Finola(8, matrices=1).double(), z).max() < 1e-12
    layer = Finola(8).double()
    assert commutator(layer, z).min() > 1e-3

    def phi(state, matrix):
        centred = state - state.mean(-1, keepdim=True)
        return state + (centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()) @ matrix.T

    a, _, b, _ = layer.directional()
    ab, ba = phi(phi(z, b), a), phi(phi(z, a), b)
    expected = (ab - ba).norm(dim=-1) / ((ab + ba) / 2 - z).norm(dim=-1)
    torch.testing.assert_close(commutator(layer, z), expected)


def test_a_map_of_other_channels_is_named() -> None:
    with pytest.raises(ConfigError, match=r"z: expected \(B, 4, H, W\)"):
        pde_residual(Finola(4), torch.zeros(1, 5, 3, 3))
