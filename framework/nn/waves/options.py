"""What a rollout can be told."""

from dataclasses import dataclass
from typing import Literal

from framework.nn.waves.steps import Scheme

Compile = Literal["regional"]


@dataclass(frozen=True)
class Rollout:
    """The arguments of `Finola` behind the number of channels, with their defaults.

    Attributes:
        scheme: `separable`, `row_first`, `column_first` or `wavefront`.
        matrices: 4, 2 (A- = -A+) or 1 (B = A as well).
        normalize: False leaves the normalisation out (a control).
        eps: added to the variance in the normalisation.
        init_std: s, the matrices start from N(0, s^2 / C).
        checkpoint: recompute the rollout in backward, path by path.
        compile: `regional` compiles the step that is repeated, alone; None: nothing.
    """

    scheme: Scheme = "separable"
    matrices: int = 4
    normalize: bool = True
    eps: float = 1e-5
    init_std: float = 0.3
    checkpoint: bool = False
    compile: Compile | None = None
