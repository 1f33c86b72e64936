"""Which images a run has, and which of them this rank owns."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from framework.distributed import gather_rows, ranks
from framework.errors import CheckpointError, DataError, few

Values = TypeVar("Values", bound=Sequence | Tensor)


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a run and their owners: image i belongs to rank i modulo the number of ranks.

    Attributes:
        names: of all images, in the order of a batch's `index`.
        sizes: their [height, width].
        world_size: number of ranks among which they are dealt out.
        rank: this one.
    """

    names: list[str] = dataclasses.field(default_factory=list)
    sizes: list[list[int]] = dataclasses.field(default_factory=list)
    world_size: int = 1
    rank: int = 0

    @classmethod
    def dealt_out(cls, names: Sequence[str], sizes: Sequence[Sequence[int]]) -> "Images":
        """Among the ranks that there are."""
        return cls(list(names), [list(size) for size in sizes], *ranks())

    def own(self, values: Values) -> Values:
        """This rank's share of something with an entry for every image."""
        return values[self.rank :: self.world_size]  # type: ignore[return-value]

    @property
    def own_names(self) -> list[str]:
        """Names of this rank's images."""
        return self.own(self.names)

    def rows(self, index: Tensor) -> list[int]:
        """Where in this rank's stack the networks of a batch's images are.

        Args:
            index: (B,) int64, images of the run.

        Raises:
            DataError: an image of another rank, or of no rank.
        """
        positions = index.tolist()
        if any(i % self.world_size != self.rank or i >= len(self.names) for i in positions):
            raise DataError(f"index: images {positions} are not all owned by rank {self.rank} of {self.world_size}")
        return [i // self.world_size for i in positions]

    def gather(self, rows: Tensor, device: torch.device) -> Tensor:
        """Rows of this rank's images -> rows of all images, on every rank. A collective over tensors on `device`."""
        return gather_rows(rows.to(device), len(self.names))

    def check_same(self, other: "Images") -> None:
        """Raises CheckpointError unless `other`, the data's images, are these, to which the networks were fitted."""
        if self.names != other.names:
            raise CheckpointError(
                f"ckpt_path: the checkpoint holds the networks of {few(self.names)}, but the data are "
                f"{few(other.names)}; give the images that the networks were fitted to"
            )
        if self.sizes != other.sizes:
            raise CheckpointError(
                f"ckpt_path: the networks were fitted to images of {few(self.sizes)} pixels, but the data have "
                f"{few(other.sizes)}; use the same data.scale and data.crop"
            )


def map_image_rows(checkpoint: dict[str, Any], count: int, change: Callable[[Tensor], Tensor]) -> None:
    """Applies `change` to every tensor of a checkpoint whose first axis is the image: networks and optimizer state.

    Args:
        checkpoint: of one rank's images or of all; edited in place. With weight averaging it holds two sets of weights.
        count: of the images that it has rows of.
        change: of rows to other rows.
    """
    for state in (checkpoint["state_dict"], checkpoint.get("current_model_state", {})):
        for name in [n for n in state if n.startswith(("network.", "best."))]:
            state[name] = change(state[name])
    for optimizer in checkpoint.get("optimizer_states", []):
        for key, values in optimizer["state"].items():
            # a new dict: this one is the live optimizer's own
            optimizer["state"][key] = {
                name: change(v) if isinstance(v, Tensor) and v.dim() > 1 and len(v) == count else v
                for name, v in values.items()
            }
