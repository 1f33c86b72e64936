"""Objects of a class map that is looked at block by block: the same objects as in the whole, whatever their number.

Seeds are labelled in every block; those that meet at a seam are one (a graph's connected components, so that an object
may go through any number of blocks). Then they grow, block by block with a margin, into what lies between them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import label

from framework.instances import Growth, grown

#: side of a block, and of the tiles of a TIFF that is written block by block
BLOCK = 512
#: how far beyond its block a region between objects is looked at: where it is thicker, its parting may differ
MARGIN = 48

Window = tuple[int, int, int, int]
Read = Callable[[int, int, int, int], np.ndarray]


class Plane(Protocol):
    """(H, W) numbers that are read and written by windows, in memory or in a file."""

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """(y1 - y0, x1 - x0)."""
        ...

    def write(self, y0: int, x0: int, values: np.ndarray) -> None:
        """Puts (h, w) values to row y0 and column x0."""
        ...


class ArrayPlane:
    """A plane in memory.

    Args:
        values: (H, W).
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """(y1 - y0, x1 - x0), a view."""
        return self.values[y0:y1, x0:x1]

    def write(self, y0: int, x0: int, values: np.ndarray) -> None:
        """Puts (h, w) values to row y0 and column x0."""
        self.values[y0 : y0 + values.shape[0], x0 : x0 + values.shape[1]] = values


def blocks(size: tuple[int, int], side: int | None = None) -> Iterator[Window]:
    """(y0, y1, x0, x1) of blocks that cover a picture, row by row."""
    side = side or BLOCK
    for y in range(0, size[0], side):
        for x in range(0, size[1], side):
            yield y, min(y + side, size[0]), x, min(x + side, size[1])


@dataclass
class _Seams:
    """Provisional labels that are one object, found along the upper and the left edge of every block."""

    width: int
    pairs: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Nothing stands above the first block."""
        self.above = np.zeros((2, self.width), np.int64)
        self.left = np.zeros((2, 0), np.int64)

    def meet(self, y0: int, x0: int, values: np.ndarray, labels: np.ndarray) -> None:
        """Looks at one block, in the order of `blocks`."""
        x1 = x0 + labels.shape[1]
        if y0:
            self._touch(self.above[:, x0:x1], np.stack([values[0], labels[0]]))
        if x0:
            self._touch(self.left, np.stack([values[:, 0], labels[:, 0]]))
        self.above[:, x0:x1] = values[-1], labels[-1]
        self.left = np.stack([values[:, -1], labels[:, -1]]).astype(np.int64)

    def _touch(self, one: np.ndarray, other: np.ndarray) -> None:
        same = (one[0] == other[0]) & (one[1] > 0) & (other[1] > 0)
        if same.any():
            self.pairs.append(np.unique(np.stack([one[1, same], other[1, same]], 1), axis=0))


def label_seeds(read: Read, size: tuple[int, int], into: Plane) -> np.ndarray:
    """Labels the connected pixels of one value above 0; neighbours are those above, below, left and right.

    Args:
        read: (y0, y1, x0, x1) -> (h, w) integers, 0 where there is no seed.
        size: (H, W).
        into: gets provisional labels.

    Returns:
        (P + 1,) int64: the final label of every provisional one, numbered by their first pixels, row by row; 0 stays 0.
    """
    seams, first, count = _Seams(size[1]), [np.zeros(1, np.int64)], 0
    for y0, y1, x0, x1 in blocks(size):
        values = read(y0, y1, x0, x1)
        labels, found = label(values, background=0, connectivity=1, return_num=True)
        place = np.empty(found + 1, np.int64)
        y, x = np.nonzero(labels)
        place[labels[y, x][::-1]] = ((y + y0) * size[1] + x + x0)[::-1]  # the last that is written stays
        first.append(place[1:])
        labels = np.where(labels > 0, labels + count, 0)
        seams.meet(y0, x0, values, labels)
        into.write(y0, x0, labels)
        count += found
    return _final(count, np.concatenate(first), seams.pairs)


def _final(count: int, first: np.ndarray, pairs: Sequence[np.ndarray]) -> np.ndarray:
    met = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
    graph = coo_matrix((np.ones(len(met), bool), (met[:, 0], met[:, 1])), (count + 1, count + 1))
    number, component = connected_components(graph, directed=False)
    earliest = np.full(number, np.iinfo(np.int64).max)
    np.minimum.at(earliest, component[1:], first[1:])
    earliest[component[0]] = -1
    rank = np.empty(number, np.int64)
    rank[np.argsort(earliest, kind="stable")] = np.arange(number)
    return rank[component]


def label_objects(classes: Plane, size: tuple[int, int], scratch: Plane, growth: Growth) -> "Objects":
    """The objects of a class map, numbered as `framework.instances.objects_of` numbers those of the whole.

    Args:
        classes: (H, W).
        size: (H, W).
        scratch: (H, W), for provisional labels.
        growth: how seeds become objects.
    """
    final = label_seeds(lambda *where: growth.seed(classes.read(*where)).astype(np.uint8), size, scratch)
    return Objects(size, scratch, final, classes, growth)


@dataclass(frozen=True)
class Objects:
    """Objects of a picture, which are put together window by window.

    Attributes:
        size: (H, W).
        seeds: provisional labels.
        final: the label of each of them.
        classes: what they grow by; None: seeds are the objects.
        growth: how.
    """

    size: tuple[int, int]
    seeds: Plane
    final: np.ndarray
    classes: Plane | None = None
    growth: Growth | None = None

    @property
    def count(self) -> int:
        """Number of objects."""
        return int(self.final.max())

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """(y1 - y0, x1 - x0) int64 labels."""
        if self.classes is None or self.growth is None:
            return self.final[self.seeds.read(y0, y1, x0, x1)]
        top, below = max(0, y0 - MARGIN), min(self.size[0], y1 + MARGIN)
        left, right = max(0, x0 - MARGIN), min(self.size[1], x1 + MARGIN)
        seeds = self.final[self.seeds.read(top, below, left, right)]
        objects = grown(self.classes.read(top, below, left, right), seeds, self.growth, (top, left))
        return objects[y0 - top : y1 - top, x0 - left : x1 - left]


class ObjectSums:
    """Area, place, box and mean intensities of objects, from parts of the picture in any order.

    Args:
        count: number of objects.
        channels: of the picture.
    """

    def __init__(self, count: int, channels: int) -> None:
        self.area = np.zeros(count + 1, np.int64)
        self.middle = np.zeros((2, count + 1))
        self.intensity = np.zeros((channels, count + 1))
        self.first = np.full((2, count + 1), np.iinfo(np.int64).max)
        self.last = np.zeros((2, count + 1), np.int64)
        self.value = np.zeros(count + 1, np.int64)

    def add(self, y0: int, x0: int, labels: np.ndarray, image: np.ndarray, values: np.ndarray) -> None:
        """Counts one part.

        Args:
            y0: its first row.
            x0: its first column.
            labels: (h, w), 0 ground.
            image: (N, h, w) intensities.
            values: (h, w) what every object has one of.
        """
        y, x = np.nonzero(labels)
        if not len(y):
            return
        ids, at = np.unique(labels[y, x], return_inverse=True)
        self.area[ids] += np.bincount(at)
        self.value[ids[at]] = values[y, x]
        for k, (places, start) in enumerate(((y, y0), (x, x0))):
            self.middle[k, ids] += np.bincount(at, places + start)
            low, high = np.full(len(ids), np.iinfo(np.int64).max), np.zeros(len(ids), np.int64)
            np.minimum.at(low, at, places + start)
            np.maximum.at(high, at, places + start + 1)
            self.first[k, ids], self.last[k, ids] = (
                np.minimum(self.first[k, ids], low),
                np.maximum(self.last[k, ids], high),
            )
        for channel, total in zip(image, self.intensity, strict=True):
            total[ids] += np.bincount(at, channel[y, x])

    def parts(self, most: int = 2**17) -> Iterator[dict[str, np.ndarray]]:
        """As `objects.csv` names them, a number for each object; at most so many at once, and at least one part."""
        for start in range(1, max(2, len(self.area)), most):
            yield self._columns(np.arange(start, min(start + most, len(self.area))))

    def _columns(self, there: np.ndarray) -> dict[str, np.ndarray]:
        area = self.area[there]
        table = {"object": there, "value": self.value[there], "area": area.astype(np.float64)}
        table |= {name: self.middle[k, there] / area for k, name in enumerate("yx")}
        boxes = (*self.first, *self.last)
        table |= {f"box_{k}": side[there] for k, side in enumerate(boxes)}
        return table | {f"mean_{k}": total[there] / area for k, total in enumerate(self.intensity)}
