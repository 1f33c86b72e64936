"""The coordinate networks of Levels-of-Experts: sine layers with experts, then a plain linear layer."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from framework.nn import ExpertLinear, Segment, SineLayer, siren_init_
from framework.nn.coordinates.experts import Bias
from framework.nn.coordinates.tiles import TilePlan, tile_plan

#: orders of rows whose tiles are kept
PLANS = 64


class LevelsOfExpertsNetwork(nn.Module):
    """B independent SIRENs side by side; every sine layer has its number of experts.

    y = W_out h_L + b_out with h_l = sin(w0 (W_l[e_l] h_{l-1} + b_l)), h_0 the input (docs/levels_of_experts.md). With
    one expert per layer it is a plain SIREN.

    Args:
        experts: number of weight matrices of every sine layer, first to last.
        names: the networks' names; the initial values are drawn from (seed, name), so that a network starts the same
            whichever others are beside it.
        in_features: length of an input row, 2 for coordinates alone.
        width: length of the hidden rows.
        out_features: length of an output row, 3 for RGB.
        w0: frequency factor of every sine.
        bias: of the sine layers, as in ExpertLinear; the last layer has one.
        seed: of the initial values.
    """

    def __init__(
        self,
        experts: Sequence[int],
        names: Sequence[str],
        in_features: int = 2,
        width: int = 256,
        out_features: int = 3,
        w0: float = 30.0,
        bias: Bias = "shared",
        seed: int = 0,
    ) -> None:
        super().__init__()
        generators = [torch.Generator().manual_seed(name_seed(seed, name)) for name in names]
        layers = []
        for level, count in enumerate(experts):
            size = width if level else in_features
            layers.append(SineLayer(size, width, count, w0, level == 0, bias, len(names), generators))
        self.layers = nn.ModuleList(layers)
        self.experts = list(experts)
        self._plans: dict[tuple, TilePlan] = {}
        self.last = ExpertLinear(width, out_features, 1, num_networks=len(names))
        siren_init_(self.last, w0, False, generators)

    def forward(self, x: Tensor, segments: Sequence[Sequence[Sequence[Segment]] | None] | TilePlan) -> Tensor:
        """All networks on their own rows; on an accelerator as tiles, with as many launches for any runs and images.

        Args:
            x: (B, N, in_features) float32.
            segments: for every sine layer the runs of its experts per network, as ExpertLinear takes them; or the
                plan that `tile_plan` makes of them.

        Returns:
            (B, N, out_features), at least float32.
        """
        if not isinstance(segments, TilePlan) and x.device.type != "cpu" and any(segments):
            segments = self._plan(x, segments)
        if isinstance(segments, TilePlan):
            x = segments.filled(x)
            for layer, tiles in zip(self.layers, segments.layers, strict=True):
                x = layer(x, segments=tiles)
            y = segments.kept(self.last(x))
        else:
            for layer, runs in zip(self.layers, segments, strict=True):
                x = layer(x, segments=runs)
            y = self.last(x)
        return y.to(torch.promote_types(y.dtype, torch.float32))

    def _plan(self, x: Tensor, segments: Sequence[Sequence[Sequence[Segment]] | None]) -> TilePlan:
        """The tiles of these runs, kept: making them copies indices to the device, which a step must not wait for."""
        key = (x.shape[1], x.device, tuple(map(_hashable, segments)))
        if key not in self._plans:
            if len(self._plans) >= PLANS:
                self._plans.clear()
            with torch.inference_mode(False):  # training may use what an evaluation made
                self._plans[key] = tile_plan(segments, self.experts, x.shape[1], x.device)
        return self._plans[key]


def _hashable(runs: Sequence[Sequence[Segment]] | None) -> tuple | None:
    return None if runs is None else tuple(map(tuple, runs))


def name_seed(seed: int, name: str) -> int:
    """A 63-bit seed that is a function of (seed, name) alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
