"""The Kodak images, or any folder of pictures, as coordinates and colours."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from datamodules.download import download
from datamodules.io import read_rgb, stem
from framework.data import BaseDataModule
from framework.distributed import ranks_of
from framework.errors import ConfigError, DataError
from framework.nn import Grid, coordinate_grid

KODAK_URL = "https://r0k.us/graphics/kodak/kodak/"
KODAK_MD5 = {
    "kodim01.png": "797a5ed9e768bac2143197febe74e9f0",
    "kodim02.png": "40bfc5a525f4659c132e72b7a733e45e",
    "kodim03.png": "5e9f48bd613eacfb6252c77ae7306a73",
    "kodim04.png": "f05d34fa98bd7fed4ecbe3597b71918e",
    "kodim05.png": "b79782844dae1e15aa9419c502a84f0a",
    "kodim06.png": "4be8c416ad84226df5ba3d289625770a",
    "kodim07.png": "4d97e7987524aff3bc495776179842be",
    "kodim08.png": "98454f0a6c3a35e70e69c20642c3bd1b",
    "kodim09.png": "07d3dba47087b5758a53010434cce622",
    "kodim10.png": "929943052e22f71b29bff2fbe197daff",
    "kodim11.png": "c04773608d99a39546de3d028a75bd35",
    "kodim12.png": "c6c8dea947e5431173a7347bdb2c2262",
    "kodim13.png": "9ddecfeef6f7915f5e5ce0d09f0c6c61",
    "kodim14.png": "a5b6b880ba060ad02805bbab60c399d0",
    "kodim15.png": "a858d33c424eaac1322cf3cab6d3d568",
    "kodim16.png": "a2308ff210e30c1969f7445135607f20",
    "kodim17.png": "52dac72df0b33bacc643ad6d42759964",
    "kodim18.png": "d1c85cf7358cd0bf4dd26c884f2e80b8",
    "kodim19.png": "d60e46f8c6fd8f8ae33a39e6eef22af3",
    "kodim20.png": "7d814638029aa1606caf78c7085414f4",
    "kodim21.png": "e7608675ced1dbc0b8d3a1878d8be675",
    "kodim22.png": "ceb46494f96589f8926a84bb5b66056e",
    "kodim23.png": "e1328ba2c55d5a72eb77e283c9630b90",
    "kodim24.png": "45a4912aaa0458940d5554ade1db5141",
}
DOWNLOADS = Path("data/kodak")

#: photographs that scikit-image carries in its own package
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
SCIKIT_IMAGE = "scikit-image"

Split = Literal["train", "val", "test", "predict"]


class KodakDataModule(BaseDataModule):
    """Whole images with the coordinates of their pixels: every split is the same set of images.

    A sample has `image` (3, H, W) float32 in [0, 1], multiples of 1/255; `coords` (H, W, 2) float32 in [-1, 1], (row,
    column); `size` (2,) int64, the image's own height and width; `index`. Portraits are transposed, so that H <= W and
    landscape and portrait stack in one batch; their coordinates are transposed with them, so every pixel keeps its
    place in the image as it stands.

    A training batch is all the images of a rank (image i belongs to rank i modulo the number of ranks), the same
    object `steps_per_epoch` times.

    Args:
        root: folder with the 24 Kodak files, or the folder that `images` starts from; None: `data/kodak` below the
            working directory, downloaded when it is not there, or with `images` the working directory.
        images: glob below `root` (e.g. `kodim0[1-3].png`, or `*.jpg` of a folder of your own), or `scikit-image` for
            the photographs that scikit-image carries; None: all of Kodak.
        scale: factor on height and width (Lanczos), before the crop.
        crop: [height, width] cut from the centre of landscapes; [width, height] of portraits.
        grid: `pixel_center` coordinates, or `inclusive` ones from -1 to 1.
        steps_per_epoch: training steps over the same batch that make an epoch.
        eval_batch_size: images per evaluation step and rank; None: all of the rank's.

    Raises:
        ConfigError: values out of range. DataError: missing, broken or equally named files, or sizes that do not stack.
    """

    def __init__(
        self,
        root: str | None = None,
        images: str | None = None,
        scale: float = 1.0,
        crop: list[int] | None = None,
        grid: Grid = "pixel_center",
        steps_per_epoch: int = 100,
        eval_batch_size: int | None = None,
    ) -> None:
        super().__init__(batch_size=1, eval_batch_size=eval_batch_size)
        if not 0 < scale <= 16:
            raise ConfigError(f"data.scale: expected a factor above 0 and at most 16, got {scale}")
        if crop is not None and (len(crop) != 2 or min(crop) < 1):
            raise ConfigError(f"data.crop: expected [height, width] of at least 1, got {crop}")
        if grid not in ("pixel_center", "inclusive"):
            raise ConfigError(f"data.grid: expected pixel_center or inclusive, got {grid!r}")
        if steps_per_epoch < 1:
            raise ConfigError(f"data.steps_per_epoch: expected at least 1, got {steps_per_epoch}")
        self.downloads = root is None and images is None
        self.root = DOWNLOADS if self.downloads else Path(root or ".").expanduser()
        self.images = images
        self.scale, self.crop, self.grid = scale, crop, grid
        self.steps_per_epoch = steps_per_epoch
        self.whole_batch = eval_batch_size is None

    def prepare_data(self) -> None:
        """Downloads what is missing of Kodak when no `root` was given; files already there are left alone."""
        if self.downloads:
            for name, md5 in KODAK_MD5.items():
                if not (self.root / name).is_file():
                    download(KODAK_URL + name, self.root / name, md5)

    def configure_dataset(self, split: Split) -> Dataset:
        """All splits are the same dataset: an image is fitted, not generalised from."""
        for dataset in self.datasets.values():
            return dataset
        if self.images == SCIKIT_IMAGE:
            named: dict[str, Path | None] = dict.fromkeys(PHOTOGRAPHS)
        else:
            named = dict(find_images(self.root, self.images))
        return ImageDataset(named, self.scale, self.crop, self.grid)

    @property
    def image_names(self) -> list[str]:
        """File names without their ending, in the order of `index`; after `setup`."""
        return list(self._dataset().names)

    @property
    def image_sizes(self) -> list[list[int]]:
        """[height, width] of every image as it stands, after scaling and cropping; after `setup`."""
        return [list(image.shape[:2]) for image in self._dataset().pixels]

    def sample_name(self, index: int) -> str:
        """Name of a sample, for files that belong to it."""
        return self._dataset().names[index]

    def _dataset(self) -> "ImageDataset":
        if not self.datasets:
            raise DataError("KodakDataModule: call setup first; the images are not open yet")
        return cast(ImageDataset, next(iter(self.datasets.values())))

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> DataLoader:
        """The rank's images as one batch, `steps_per_epoch` times."""
        return _loader_of(self._rank_batch(), self.steps_per_epoch)

    def _evaluation_loader(self, split: str) -> DataLoader:
        if self.whole_batch:
            return _loader_of(self._rank_batch(), 1)
        return super()._evaluation_loader(split)

    def _rank_batch(self) -> dict[str, Tensor]:
        dataset = self._dataset()
        world_size, rank = ranks_of(self.trainer)
        if world_size > len(dataset):
            raise ConfigError(
                f"trainer.devices: {world_size} processes for {len(dataset)} images; every process owns at least one "
                "image, so give fewer processes or more images"
            )
        # One object for training and evaluation: what a model prepares for it once serves both.
        if getattr(self, "_batch_of", None) != (world_size, rank):
            self._batch_of = (world_size, rank)
            self._batch = default_collate([dataset[i] for i in range(rank, len(dataset), world_size)])
        return self._batch


class ImageDataset(Dataset):
    """Pictures of one size, landscape and portrait alike, kept in memory as uint8.

    Args:
        named: name -> file; None for a photograph of scikit-image of that name.
        scale: factor on height and width.
        crop: [height, width] for landscapes.
        grid: of the coordinates.
    """

    def __init__(self, named: dict[str, Path | None], scale: float, crop: list[int] | None, grid: Grid) -> None:
        self.names = list(named)
        self.grid: Grid = grid
        self.pixels = []
        for name, path in named.items():
            picture = getattr(photographs, name)() if path is None else read_rgb(path)
            self.pixels.append(_cropped(_scaled(picture, scale), crop, name))
        sizes = {name: tuple(sorted(p.shape[:2])) for name, p in zip(self.names, self.pixels, strict=True)}
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{name} {b} x {a}" for name, (a, b) in list(sizes.items())[:6])
            smallest = [min(size[axis] for size in sizes.values()) for axis in (0, 1)]
            raise DataError(
                f"data.images: the images of a run have one size, but these have several ({shown}, ...); "
                f"data.crop: {smallest} fits all of them"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pixels = self.pixels[int(index)]
        height, width = pixels.shape[:2]
        coords = coordinate_grid(height, width, self.grid)
        image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        if height > width:
            image, coords = image.transpose(1, 2), coords.transpose(0, 1)
        return {
            "image": image.contiguous(),
            "coords": coords.contiguous(),
            "size": torch.tensor([height, width]),
            "index": torch.tensor(int(index)),
        }


class _SameBatch(IterableDataset):
    # iterable, so that Lightning does not deal its repetitions out to the ranks
    def __init__(self, batch: dict[str, Tensor], times: int) -> None:
        self.batch, self.times = batch, times

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.times):
            yield self.batch

    def __len__(self) -> int:
        return self.times


def _loader_of(batch: dict[str, Tensor], times: int) -> DataLoader:
    return DataLoader(_SameBatch(batch, times), batch_size=None, collate_fn=_same)


def _same(batch: Any) -> Any:
    return batch


# ---------------------------------------------------------------------- files


def find_images(root: Path, pattern: str | None) -> list[tuple[str, Path]]:
    """(name, path) of the pictures below `root`, in the order of their paths; the 24 of Kodak without a pattern.

    Raises:
        DataError: no folder, missing Kodak files, no match, or two files of one name.
    """
    if not root.is_dir():
        raise DataError(f"data.root: there is no folder {root}; give the folder with the pictures")
    if pattern is None:
        missing = [name for name in KODAK_MD5 if not (root / name).is_file()]
        if missing:
            raise DataError(
                f"data.root: {root} lacks {len(missing)} of the {len(KODAK_MD5)} Kodak files: {', '.join(missing)}; "
                "add them, leave data.root out to download all, or choose pictures with data.images"
            )
        return [(stem(name), root / name) for name in KODAK_MD5]
    paths = [root / match for match in sorted(glob.glob(pattern, root_dir=root, recursive=True))]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise DataError(f"data.images: nothing in {root} matches {pattern!r}")
    named: dict[str, Path] = {}
    for path in paths:
        name = stem(path.name)
        if name in named:
            raise DataError(
                f"data.images: {named[name]} and {path} have the same name; results are named after the picture, "
                "so rename one"
            )
        named[name] = path
    return list(named.items())


def _scaled(pixels: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return pixels
    height, width = (max(1, round(n * scale)) for n in pixels.shape[:2])
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _cropped(pixels: np.ndarray, crop: Sequence[int] | None, name: str) -> np.ndarray:
    if crop is None:
        return pixels
    height, width = crop if pixels.shape[0] <= pixels.shape[1] else (crop[1], crop[0])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    if min(top, left) < 0:
        raise DataError(
            f"data.crop: {name} is {pixels.shape[0]} x {pixels.shape[1]}, too small for a crop of {height} x {width}"
        )
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])
