"""The pictures of a tree by class, and as a dataset."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.io import SUFFIXES, list_pictures, read_rgb
from datamodules.transforms import Transform
from framework.errors import DataError, few


@dataclass
class Listing:
    """The pictures of one tree: paths, class indices (None without classes) and the class names in index order."""

    paths: list[str]
    labels: list[int] | None
    class_names: list[str]

    def take(self, positions: Sequence[int]) -> "Listing":
        """The same classes with a part of the pictures."""
        labels = None if self.labels is None else [self.labels[i] for i in positions]
        return Listing([self.paths[i] for i in positions], labels, self.class_names)


def scan(root: Path, argument: str = "data.root") -> Listing:
    """Lists a tree: one class per sub-folder that holds pictures, in sorted order; or a flat folder without classes.

    Raises:
        DataError: no such folder, no picture in it, or an empty class folder beside full ones.
    """
    if not root.is_dir():
        raise DataError(f"{argument}: there is no folder {root}")
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    per_class = {name: list_pictures(root / name, root) for name in folders}
    full = [name for name in folders if per_class[name]]
    if not full:
        flat = list_pictures(root)
        if not flat:
            raise DataError(
                f"{argument}: {root} holds no picture ({', '.join(sorted(SUFFIXES))}), "
                "neither in class folders nor beside them"
            )
        return Listing(flat, None, [])
    if len(full) < len(folders):
        empty = [name for name in folders if not per_class[name]]
        raise DataError(
            f"{argument}: {len(empty)} of the {len(folders)} class folders of {root} hold no picture: {few(empty)}; "
            "fill them or remove them"
        )
    paths = [path for name in full for path in per_class[name]]
    labels = [label for label, name in enumerate(full) for _ in per_class[name]]
    return Listing(paths, labels, full)


def check_labels(listing: Listing, part: str) -> None:
    """Raises DataError for a flat `part` beside others with classes: there its pictures can only be predicted."""
    if listing.labels is None:
        raise DataError(
            f"data.root: expected class folders in {part} as in its others, got a flat folder, whose pictures have no "
            "labels and can only be predicted; sort them into class folders"
        )


class ImageFiles(Dataset):
    """Pictures of a listing as `image` (3, H, W), `label` (where there are classes) and `index` (position in the tree).

    Args:
        listing: of the whole tree.
        positions: of the pictures that belong to this dataset.
        transform: of a picture, with a generator of its own.
        seed: of that generator, together with epoch and index.
    """

    def __init__(self, listing: Listing, positions: Sequence[int], transform: Transform, seed: int = 0) -> None:
        self.positions = np.asarray(positions, dtype=np.int64)
        self.listing = listing
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        position = int(self.positions[item])
        rng = np.random.default_rng([self.seed, getattr(item, "epoch", 0), position])
        sample = {"image": self.transform(Image.fromarray(read_rgb(self.listing.paths[position])), rng)}
        if self.listing.labels is not None:
            sample["label"] = torch.tensor(self.listing.labels[position])
        sample["index"] = torch.tensor(position)
        return sample
