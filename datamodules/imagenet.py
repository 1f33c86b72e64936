"""ImageNet as a folder of pictures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from datamodules.image_folder import ImageFolderDataModule
from datamodules.listing import Listing
from datamodules.transforms import Interpolation
from framework.errors import ConfigError, DataError, few

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "ImageFolderDataModule", "ImageNetDataModule"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet-1k from `train/` and `val/`, or from one tree of class folders named by their WordNet ids.

    Labels are always the usual 1000 class indices (sorted ids), which is checked. The other arguments are those of
    ImageFolderDataModule.

    Args:
        root: the folder that holds `train` and `val`, each with 1000 folders such as `n01440764`.
        published: a timm model name, e.g. `convnextv2_tiny.fcmae_ft_in1k`, whose published evaluation transform
            (size, resize, interpolation, mean, std) is used wherever the arguments below are None.
        image_size: side of the result; None: the published one, else 224.
        resize: shorter side before the centre crop; None: the published one, else image_size / 0.875.
        interpolation: None: the published one, else `bicubic`.
        eval_crop: None: the published one, else `center`.
        mean: None: the published one, else ImageNet's.
        std: None: the published one, else ImageNet's.
        partial: accept a folder with only some of the 1000 classes; labels keep their ImageNet numbers.
        kwargs: the remaining arguments of ImageFolderDataModule.

    Raises:
        ConfigError: an unknown model name or an evaluation transform of another kind.
        DataError: (in `setup`) archives that are not unpacked, unsorted validation pictures, missing classes.
    """

    def __init__(
        self,
        root: str,
        published: str | None = None,
        image_size: int | None = None,
        resize: int | None = None,
        interpolation: Interpolation | None = None,
        eval_crop: Literal["center", "squash"] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        partial: bool = False,
        **kwargs: Any,
    ) -> None:
        known = published_transform(published) if published else {}
        size = image_size or known.get("image_size", 224)
        super().__init__(
            root,
            image_size=size,
            resize=resize or math.floor(size / known.get("crop_fraction", 0.875)),
            interpolation=interpolation or known.get("interpolation", "bicubic"),
            mean=mean or known.get("mean", IMAGENET_MEAN),
            std=std or known.get("std", IMAGENET_STD),
            eval_crop=eval_crop or known.get("eval_crop", "center"),
            **kwargs,
        )
        self.partial = partial

    def _find_parts(self) -> dict[str, tuple[Listing, list[int]]]:
        if self.root.is_dir() and (reason := unfinished_imagenet(self.root)):
            raise DataError(f"data.root: {reason}")
        return super()._find_parts()

    def scan(self, folder: Path) -> Listing:
        """The listing with ImageNet's class numbers, all 1000 of them unless `partial`."""
        listing = super().scan(folder)
        order = wordnet_ids()
        numbers = {name: number for number, name in enumerate(order)}
        if listing.labels is None:
            raise DataError(
                f"data.root: {folder} has {len(listing.paths)} pictures but no class folders; sort them into folders "
                "named by WordNet id (n01440764, ...)"
            )
        strangers = [name for name in listing.class_names if name not in numbers]
        if strangers:
            raise DataError(
                f"data.root: {len(strangers)} of the {len(listing.class_names)} class folders of {folder} are not "
                f"ImageNet-1k classes: {few(strangers)}; ImageFolderDataModule takes any classes"
            )
        missing = sorted(set(order) - set(listing.class_names))
        if missing and not self.partial:
            raise DataError(
                f"data.root: {folder} lacks {len(missing)} of the 1000 classes: {few(missing)}; unpack the rest, or "
                "set data.partial: true to evaluate on the classes there are"
            )
        labels = [numbers[listing.class_names[label]] for label in listing.labels]
        return Listing(listing.paths, labels, order)


def wordnet_ids() -> list[str]:
    """The 1000 WordNet ids of ImageNet-1k in class order, from timm's list."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def published_transform(model: str) -> dict[str, Any]:
    """A timm model's published evaluation: image_size, crop_fraction, interpolation, eval_crop, mean, std.

    Raises:
        ConfigError: timm has no such model, or its crop is neither central nor a squash.
    """
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg, is_model, list_models

    name = model.split(".")[0]
    if not is_model(name):
        from framework.suggest import nearest_names

        raise ConfigError(
            f"data.published: timm has no model {model!r}; nearest: {', '.join(nearest_names(name, list_models()))}"
        )
    cfg = get_pretrained_cfg(model)
    if cfg is None:
        raise ConfigError(f"data.published: timm has no pretrained configuration {model!r}; leave out the tag")
    config = resolve_data_config(pretrained_cfg=cfg.to_dict())
    if config["crop_mode"] not in ("center", "squash"):
        raise ConfigError(
            f"data.published: {model} is evaluated with crop mode {config['crop_mode']}, not center or squash"
        )
    return {
        "image_size": config["input_size"][-1],
        "crop_fraction": config["crop_pct"],
        "interpolation": config["interpolation"],
        "eval_crop": config["crop_mode"],
        "mean": config["mean"],
        "std": config["std"],
    }


def unfinished_imagenet(root: Path) -> str | None:
    """What is left to do in a half-unpacked ImageNet folder, or None."""
    outer = sorted(path.name for path in root.glob("ILSVRC2012_img_*.tar"))
    for split in ("train", "val"):
        folder = root / split
        inner = sorted(path.name for path in folder.glob("n*.tar")) if folder.is_dir() else []
        if inner:
            return f"{folder} still holds {len(inner)} class archives ({few(inner, 2)}); unpack each into a folder"
        flat = next(folder.glob("ILSVRC2012_val_*.JPEG"), None) if folder.is_dir() else None
        if flat is not None:
            return f"{folder} holds unsorted validation pictures ({flat.name}); move them into their class folders"
        if outer and not folder.is_dir():
            return f"{root} holds {', '.join(outer)} but no folder {split}; unpack the archive into {folder}"
    return None
