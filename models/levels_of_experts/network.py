"""The coordinate networks of Levels-of-Experts: sine layers with experts, then a plain linear layer."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from framework.nn import ExpertLinear, Segment, SineLayer, siren_init_
from framework.nn.coordinates.experts import Bias


class LevelsOfExpertsNetwork(nn.Module):
    """B independent SIRENs side by side; every sine layer has its number of experts.

    y = W_out h_L + b_out with h_l = sin(w0 (W_l[e_l] h_{l-1} + b_l)), h_0 the input (specification, "Model math"). With
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
        self.last = ExpertLinear(width, out_features, 1, num_networks=len(names))
        siren_init_(self.last, w0, False, generators)

    def forward(self, x: Tensor, segments: Sequence[Sequence[Sequence[Segment]] | None]) -> Tensor:
        """All networks on their own rows.

        Args:
            x: (B, N, in_features) float32.
            segments: for every sine layer the runs of its experts per network, as ExpertLinear takes them.

        Returns:
            (B, N, out_features), at least float32.
        """
        for layer, runs in zip(self.layers, segments, strict=True):
            x = layer(x, segments=runs)
        y = self.last(x)
        return y.to(torch.promote_types(y.dtype, torch.float32))


def name_seed(seed: int, name: str) -> int:
    """A 63-bit seed that is a function of (seed, name) alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
