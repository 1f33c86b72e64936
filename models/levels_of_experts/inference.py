"""Levels-of-Experts as it is deployed: all pictures of a run as one function of (picture, position)."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from framework.deploy.form import Axis, InferenceForm, Port
from framework.errors import ConfigError
from framework.nn import SineLayer, tile_index
from framework.nn.coordinates.segmented import chosen
from models.levels_of_experts.network import LevelsOfExpertsNetwork
from models.levels_of_experts.rows import MAP, Expert, nearest, sorted_rows

if TYPE_CHECKING:
    from models.levels_of_experts.method import LevelsOfExperts


class PictureFunction(nn.Module):
    """Colours at any positions of any of the pictures; tiles and class maps are looked up inside.

    Every expert is applied to every row and the row's own is kept, which holds for any positions in any order.

    Args:
        network: the pictures' networks, as a stack.
        experts: what chooses every sine layer's weights.
        offsets: of the tiles.
        maps: (images, H, W) uint8 class maps as they stand (portraits upright, filled up to one size), or None.
        sizes: [height, width] of all pictures.
        one_hot: number of classes to append to the coordinates; None: nothing is appended.
    """

    maps: Tensor | None
    sizes: Tensor

    def __init__(
        self,
        network: LevelsOfExpertsNetwork,
        experts: Sequence[Expert],
        offsets: Sequence[float],
        maps: Tensor | None,
        sizes: Sequence[Sequence[int]],
        one_hot: int | None,
    ) -> None:
        super().__init__()
        self.experts, self.offsets, self.one_hot = list(experts), list(offsets), one_hot
        self.factors = [cast(SineLayer, layer).w0 for layer in network.layers]
        layers = [*(cast(SineLayer, layer).linear for layer in network.layers), network.last]
        biases = [torch.zeros(0) if layer.bias is None else layer.bias for layer in layers]
        self.weights = nn.ParameterList([layer.weight.detach().clone() for layer in layers])
        self.biases = nn.ParameterList([bias.detach().clone() for bias in biases])
        self.register_buffer("maps", None if maps is None else maps.flatten(1))
        self.width = 0 if maps is None else maps.shape[2]
        self.register_buffer("sizes", torch.tensor(sizes))

    def forward(self, index: Tensor, coords: Tensor) -> Tensor:
        """Colours.

        Args:
            index: (B,) int64, pictures.
            coords: (B, N, 2) float32, (row, column) in [-1, 1].

        Returns:
            (B, N, 3) RGB in [0, 1].
        """
        labels = self._labels(index, coords)
        x = coords
        if self.one_hot is not None and labels is not None:
            classes = torch.arange(self.one_hot, device=coords.device)
            x = torch.cat([coords, (labels[..., None] == classes).to(coords.dtype)], -1)
        dtype = self.weights[-1].dtype
        for level, (kind, offset, factor) in enumerate(zip(self.experts, self.offsets, self.factors, strict=True)):
            weight, bias = self._own(level, index)
            if level == 0:  # 16 bits cannot tell the coordinates of neighbouring pixels apart
                weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
            if kind is None:
                expert = torch.zeros_like(coords[..., 0], dtype=torch.int64)
            else:
                expert = cast(Tensor, labels) if kind == MAP else tile_index(coords, cast(float, kind), offset)
            rows = chosen(x, factor * weight, None if bias is None else factor * bias, expert)
            x = torch.sin(rows).to(dtype)
        weight, bias = self._own(len(self.experts), index)
        y = x @ weight[:, 0].mT
        y = y if bias is None else y + (bias if bias.dim() == 2 else bias[:, 0])[:, None]
        return ((y.float() + 1) / 2).clamp(0, 1)

    def _own(self, level: int, index: Tensor) -> tuple[Tensor, Tensor | None]:
        bias = self.biases[level]
        return self.weights[level][index], bias[index] if bias.numel() else None

    def _labels(self, index: Tensor, coords: Tensor) -> Tensor | None:
        """(B, N) classes of the pixels nearest to the positions."""
        if self.maps is None:
            return None
        size = self.sizes[index][:, None]
        place = ((coords + 1) / 2 * size).floor().long()
        place = torch.minimum(place.clamp(min=0), size - 1)
        return self.maps[index].long().gather(1, place[..., 0] * self.width + place[..., 1])


class Rendered:
    """The same by the method's own way: rows sorted by their experts, picture by picture.

    Args:
        method: LevelsOfExperts.
        maps: as PictureFunction takes them.
    """

    def __init__(self, method: "LevelsOfExperts", maps: Tensor | None) -> None:
        self.method, self.maps = method, maps

    def __call__(self, index: Tensor, coords: Tensor) -> Tensor:
        """As PictureFunction."""
        method = self.method
        one_hot = method.classes if method.class_input else None
        colours = []
        for picture, xy in zip(index, coords, strict=True):
            labels = None
            if self.maps is not None:
                height, width = method.sizes[int(picture)]
                labels = nearest(self.maps[picture, :height, :width].long(), xy, "pixel_center")[None]
            rows = sorted_rows(xy[None], labels, method.experts, method.offsets, one_hot)
            made = method(rows.inputs, rows.segments, method.images.rows(picture[None]))[0]
            colours.append(torch.empty_like(made).index_copy_(0, rows.order[0], made))
        return ((torch.stack(colours) + 1) / 2).clamp(0, 1)


def upright_maps(maps: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    """(images, H, W) maps as batches lay them out, portraits transposed -> as pictures stand, filled with 0."""
    standing = [m.T if h > w else m for m, (h, w) in zip(maps.cpu(), sizes, strict=True)]
    height, width = (max(m.shape[axis] for m in standing) for axis in (0, 1))
    filled = torch.zeros(len(standing), height, width, dtype=torch.uint8)
    for into, m in zip(filled, standing, strict=True):
        into[: m.shape[0], : m.shape[1]] = m
    return filled


def forms(method: "LevelsOfExperts") -> list[InferenceForm]:
    """One file for all pictures.

    Raises:
        ConfigError: the method holds no pictures yet.
    """
    names, sizes = method.names, method.sizes
    if not names:
        raise ConfigError("export: the method holds no pictures yet; fit it, or load a checkpoint")
    stack = copy.deepcopy(cast(LevelsOfExpertsNetwork, method.network))
    with torch.no_grad():
        for name, parameter in (method.best_parameters() if method.weights == "best" else {}).items():
            stack.get_parameter(name).copy_(parameter)
    maps = None if method.segmentation_maps is None else upright_maps(method.segmentation_maps, sizes)
    one_hot = method.classes if method.class_input else None
    function = PictureFunction(stack, method.experts, method.offsets, maps, sizes, one_hot)
    batch, rows = Axis("batch"), Axis("rows", 2)
    place = "(row, column); pixel i of n is at -1 + (2 i + 1) / n"
    inputs = (
        Port("index", (batch,), 0, len(names), "number of the picture, see `pictures`", whole=True),
        Port("coords", (batch, rows, Axis("axes", fixed=2)), -1, 1, place),
    )
    output = Port("colours", (batch, rows, Axis("channels", fixed=3)), 0, 1, "RGB in [0, 1]")
    extra = {"pictures": [{"name": name, "size": list(size)} for name, size in zip(names, sizes, strict=True)]}
    rendered = Rendered(method, maps)
    return [InferenceForm("pictures", function.eval(), inputs, output, rendered, extra=extra)]
