"""Tiled and whole logits are the same, whatever the size of picture and tile, and every pixel is given once."""

from typing import Any

import pytest
import torch

from framework.errors import ConfigError
from framework.tiling import tiled, tiles, whole
from models import KMUNet, KOriginsSegmentation


def networks() -> dict[str, Any]:
    torch.manual_seed(0)
    # origins within the range of the pictures, so that the deeper maps differ from pixel to pixel
    small: dict[str, Any] = {"width": 4, "origins": "random", "deep_mean": 0.0, "deep_std": 1.0}
    return {
        "korigins 8": KOriginsSegmentation(rfl=8, **small),
        "korigins 38": KOriginsSegmentation(rfl=38, **small),
        "korigins 32": KOriginsSegmentation(rfl=32, **small),
        "kmunet": KMUNet(width=2, stages=2),
        "kmunet transposed": KMUNet(width=2, stages=2, up="transposed", korigins=[0.0, 1.0]),
        "unet": KMUNet(width=2, stages=2, baseline=4),
    }


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("size", [(150, 203), (96, 256)])
def test_tiles_give_the_logits_of_the_whole(name: str, size: tuple[int, int]) -> None:
    model = networks()[name].eval()
    network = model.network
    image = torch.randn(2, 1, *size)
    with torch.no_grad():
        expected = model(image)
        got = whole(model, image, network.stride, network.reach, 50)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("name", networks())
def test_reach_is_how_far_a_logit_looks(name: str) -> None:
    model = networks()[name].eval()
    network = model.network
    reach, stride = network.reach, network.stride
    side = 2 * reach + 4 * stride
    side += -side % stride
    centre = side // 2 // stride * stride
    image = torch.randn(3, 1, side, side, requires_grad=True)  # several: a ReLU may be silent on one
    output = model(image)
    furthest = 0
    for phase in (0, stride - 1):
        logits = output[:, :, centre + phase, centre + phase]
        (gradient,) = torch.autograd.grad(logits.sum(), image, retain_graph=True)
        rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
        furthest = max(furthest, centre + phase - int(rows[0]), int(rows[-1]) - centre - phase)
    assert furthest <= reach
    assert furthest >= reach - 2 * stride


def test_every_pixel_is_given_once_and_tiles_begin_with_a_pooling() -> None:
    size = (72, 104)
    seen = torch.zeros(size)
    for one in tiles(size, 30, 5, 8):
        y0, y1, x0, x1 = one.kept
        seen[y0:y1, x0:x1] += 1
        assert all(v % 8 == 0 for v in one.seen)
    assert seen.eq(1).all()


def test_prediction_in_tiles_is_the_prediction_of_the_whole() -> None:
    model = KMUNet(width=2, stages=2).eval()
    batch = {"image": torch.randn(2, 1, 90, 70), "index": torch.tensor([0, 1])}
    with torch.no_grad():
        expected = model.predict_step(batch, 0)["mask"]
        model.tile = 32
        got = model.predict_step(batch, 0)["mask"]
    assert got.dtype == torch.uint8
    assert (got != expected).float().mean() < 1e-3


@pytest.mark.parametrize("tile", [0, -3, "large"])
def test_wrong_tiles_are_named(tile: Any) -> None:
    with pytest.raises(ConfigError, match="tile: expected auto, null or a side in pixels"):
        list(tiled(lambda x: x, lambda *_: torch.zeros(1, 1, 8, 8), (8, 8), 4, 2, tile))
