"""Fits to a picture's derivatives: what is asked of a network, by plain autograd, and that the picture is found."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from framework.errors import ConfigError, DataError
from framework.nn import coordinate_grid
from models.levels_of_experts.derivatives import derivative_losses, derivatives_of, stencil, through_derivatives
from models.levels_of_experts.network import LevelsOfExpertsNetwork
from models.levels_of_experts.rows import Expert, expert_indices, sorted_rows
from tests.models.loe_tools import fit, make_model, write_pictures

SIZE = (8, 12)
EXPERTS: list[Expert] = [2.0, 1.0, None]


def network_and_rows(experts: list[Expert], width: int = 6) -> tuple[LevelsOfExpertsNetwork, Any, list[Tensor], Tensor]:
    coords = coordinate_grid(*SIZE)[None].double()
    offsets = [0.0] * len(experts)
    rows = sorted_rows(coords.flatten(1, 2), None, experts, offsets)
    torch.manual_seed(0)
    network = LevelsOfExpertsNetwork([1 if e is None else 4 for e in experts], ["one"], width=width, w0=5.0).double()
    return network, rows, expert_indices(coords[0].flatten(0, 1), None, experts, offsets), coords


@pytest.mark.parametrize("kind", ["gradient", "laplacian"])
@pytest.mark.parametrize("experts", [EXPERTS, [None, None]])
def test_derivatives_are_those_of_every_pixels_own_network(kind: Any, experts: list[Expert]) -> None:
    """One pixel at a time by the experts' own matrices, with torch's jacobian and hessian."""
    network, rows, indices, coords = network_and_rows(experts)
    steps = torch.stack([coords[:, 1, 0] - coords[:, 0, 0], coords[:, 0, 1] - coords[:, 0, 0]], 1)
    values, said = through_derivatives(lambda x: network(x, rows.segments).double(), rows.inputs, kind, steps)
    for place in (0, 7, 50, 95):
        pixel = int(rows.order[0, place])

        def of(x: Tensor, pixel: int = pixel) -> Tensor:
            for layer, index in zip(network.layers, indices, strict=True):
                inner = layer.linear
                x = torch.sin(5.0 * (inner.weight[0, int(index[pixel])] @ x + inner.bias[0]))  # type: ignore[union-attr,index,operator]
            return network.last.weight[0, 0] @ x + network.last.bias[0]  # type: ignore[index]

        at = coords[0].flatten(0, 1)[pixel]
        torch.testing.assert_close(values[0, place], of(at), rtol=1e-6, atol=1e-6)
        step = torch.tensor([2 / SIZE[0], 2 / SIZE[1]], dtype=torch.float64)
        if kind == "gradient":
            expected = (jacobian(of, at) * step).T
        else:
            second = torch.stack([hessian(lambda x, c=c: of(x)[c], at) for c in range(3)])
            expected = (second.diagonal(dim1=1, dim2=2) * step.square()).sum(1)[None]
        torch.testing.assert_close(said[0, place], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["gradient", "laplacian"])
def test_a_network_that_is_the_picture_has_no_loss_and_one_shifted_inside_has(kind: Any) -> None:
    """Of a quadratic picture both derivatives are exact differences, inside pieces and across their borders."""
    _, rows, indices, coords = network_and_rows(EXPERTS)
    y, x = coords[0].unbind(-1)
    colours = torch.stack([0.2 + 0.1 * x * y, 0.3 * y - 0.2 * x, 0.1 * x**2 - 0.2 * y**2], 0)[None]
    wanted = derivatives_of(kind, (colours + 1) / 2, coords, [indices], rows.order)
    target = torch.gather(colours.flatten(2).transpose(1, 2), 1, rows.order[..., None].expand(-1, -1, 3))

    def said(inputs: Tensor) -> Tensor:
        y, x = inputs.unbind(-1)
        return torch.stack([0.2 + 0.1 * x * y, 0.3 * y - 0.2 * x, 0.1 * x**2 - 0.2 * y**2], -1)

    values, losses = derivative_losses(said, rows.inputs, target, wanted)
    torch.testing.assert_close(values, target)
    assert float(losses[0].detach()) < 1e-12
    piece = (indices[0][rows.order] == 1).double()[..., None]  # a shifted piece has the right derivatives
    _, losses = derivative_losses(lambda z: said(z) + 0.3 * piece, rows.inputs, target, wanted)
    assert float(losses[0].detach()) > 1e-3
    inside = wanted.inside.double()[..., None]
    _, losses = derivative_losses(said, rows.inputs, target + 5 * inside, wanted)
    assert float(losses[0].detach()) < 1e-12  # colours inside are not looked at


def test_the_stencils_are_central_differences() -> None:
    picture = torch.rand(2, 5, 6, 3, dtype=torch.float64)
    gradient, laplacian = stencil(picture, "gradient"), stencil(picture, "laplacian")
    for i, j in ((1, 1), (3, 4), (2, 2)):
        torch.testing.assert_close(gradient[:, i, j, 0], (picture[:, i + 1, j] - picture[:, i - 1, j]) / 2)
        torch.testing.assert_close(gradient[:, i, j, 1], (picture[:, i, j + 1] - picture[:, i, j - 1]) / 2)
        around = picture[:, i + 1, j] + picture[:, i - 1, j] + picture[:, i, j + 1] + picture[:, i, j - 1]
        torch.testing.assert_close(laplacian[:, i, j, 0], around - 4 * picture[:, i, j])


@pytest.mark.parametrize("kind", ["gradient", "laplacian"])
def test_a_picture_is_found_from_its_derivatives(kind: Any) -> None:
    """Colours inside are never seen; a network that knew the border alone would stay far below."""
    network, rows, indices, coords = network_and_rows(EXPERTS, width=16)
    y, x = coords[0].unbind(-1)
    colours = torch.stack([(3 * x + c).sin() * (2 * y + c).cos() for c in range(3)])[None]
    wanted = derivatives_of(kind, (colours + 1) / 2, coords, [indices], rows.order)
    target = torch.gather(colours.flatten(2).transpose(1, 2), 1, rows.order[..., None].expand(-1, -1, 3))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(100):
        values, losses = derivative_losses(lambda z: network(z, rows.segments), rows.inputs, target, wanted)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    off = (values.detach() - target).square().mean(2)[wanted.inside].mean().sqrt()
    assert float(off) < 0.03
    assert float(target[wanted.inside].std()) > 10 * float(off)


def test_with_a_class_map_and_portraits_too(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", ["one", "two"])
    model = make_model(lr=2e-3, supervision="gradient", class_input=True)
    fit(model, pictures, steps=2, epochs=1)
    first = float(model.losses.max())
    fit(model, pictures, steps=8, epochs=2)
    assert float(model.losses.max()) < 0.8 * first
    assert len(model.history[-1][1]) == 2  # evaluated in inference mode, without a graph to be had


def test_what_cannot_be_fitted_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.supervision: expected value, gradient or laplacian, got 'slope'"):
        make_model(supervision="slope")
    with pytest.raises(ConfigError, match=r"model.rows_at_once: gradient supervision takes all pixels at once, got 64"):
        make_model(supervision="gradient", rows_at_once=64)
    narrow = write_pictures(tmp_path / "pictures", ["one"], (2, 8))
    with pytest.raises(DataError, match="at least 3 x 3 pixels, got 2 x 8"):
        fit(make_model(supervision="laplacian", experts=[None, None]), narrow, callbacks=[])
