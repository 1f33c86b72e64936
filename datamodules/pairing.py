"""Which file is an image, which is its mask, and which split they belong to."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from datamodules.io import ARRAYS, SUFFIXES, is_hidden, is_picture, natural, stem
from datamodules.tables import read_table
from framework.errors import DataError, few

KINDS = SUFFIXES | ARRAYS

#: what people call their splits
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

_TAKEN = ("train", "val", "test")

#: endings of the names of masks and of images; a mask may also have a number behind it
_MASK = re.compile(
    r"(.+?)[ _.-](?:cp_)?(?:masks?|labels?|seg|segmentation|gt|ground_?truth|annotations?)(?:[ _.-]?\d+)?",
    re.IGNORECASE,
)
#: what predictions are called beside masks
_RESULT = re.compile(r"(.+)_(?:overlay|probabilities)")
_SLICE = re.compile(r"_slice\d+$")
_IMAGE = re.compile(r"(.+?)[ _.-](?:image|img|raw)", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """One sample.

    Attributes:
        index: unique within the data module.
        image: its file.
        masks: its mask files; none in unlabelled prediction data.
        name: of the sample: the image's without the ending or `folder`, and the slice's number.
        part: which slice of the file; None: the file is one plane, or its slices are joined.
        split: train, val or test where folders say so.
        folder: the sample's, where images in folders of their own share their names.
    """

    index: int
    image: Path
    masks: tuple[Path, ...] = field(default=())
    name: str = ""
    part: int | None = None
    split: str | None = None
    folder: str = ""


def pictures_in(folder: Path, key: str) -> dict[str, Path]:
    """The picture files of a folder by stem, in the order of their paths; hidden files are passed over.

    Raises:
        DataError: no such folder, no picture in it, or two of one stem; `key` names the argument.
    """
    if folder.is_file():
        raise DataError(f"{key}: expected a folder, got the file {folder}; give the folder that it lies in")
    if not folder.is_dir():
        raise DataError(f"{key}: there is no folder {folder}; give data.root, data.images and data.masks")
    found = _by_stem(sorted(folder.iterdir()), key)
    if not found:
        raise DataError(f"{key}: no image in {folder} (looked for {', '.join(sorted(KINDS))})")
    return found


def results_among(files: Iterable[str]) -> set[str]:
    """Names of a folder to predict that are another one's mask or prediction: that one, and an ending behind it."""
    names = set(files)
    stems = names | {match[1] for name in names if (match := _IMAGE.fullmatch(name)) is not None}
    found = {name: (_MASK.fullmatch(name), _RESULT.fullmatch(name)) for name in names}
    return {
        name
        for name, matches in found.items()
        if any(match is not None and not stems.isdisjoint((match[1], _SLICE.sub("", match[1]))) for match in matches)
    }


def _by_stem(paths: Iterable[Path], key: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if is_picture(path, KINDS):
            name = stem(path.name)
            if name in found:
                raise DataError(f"{key}: {path.name} and {found[name].name} have one stem; remove one of them")
            found[name] = path
    return found


def find_pairs(root: Path, images: str, masks: str) -> list[Pair]:
    """Images and masks below `root`, however people lay them out.

    `images/` and `masks/`; `train/`, `val/`, `test/` with these two inside, or inside these two, or with images and
    masks side by side; a folder for every sample with these two inside, after which all samples are named where two of
    the images share a name (`image.png`); or images and masks in one folder. A mask has
    its image's name, or that name and an ending (`x_mask.png`, `x_labels.tif`, `x_seg.tif`, `x_mask_1.png`, ...), or
    all masks of an image lie in a folder of its name.

    Raises:
        DataError: folders that are missing or empty, files without a counterpart, and two images of one sample.
    """
    if root.is_file():
        raise DataError(f"data.root: expected a folder, got the file {root}; give the folder that it lies in")
    if _has_pictures(root / images) or ((root / images).is_dir() and not _split_folders(root / images)):
        return _numbered(_in_two_folders(root / images, root / masks))
    pairs = []
    for name, split in _split_folders(root / images).items():
        pairs += _in_split(root / images / name, root / masks / name, split)
    for name, split in _split_folders(root).items() if not pairs else ():
        folder = root / name
        if (folder / images).is_dir():
            pairs += _in_split(folder / images, folder / masks, split)
        else:
            pairs += _in_split(folder, folder, split)
    if not pairs and root.is_dir():
        pairs = _in_folders_of_samples(root, images, masks)
    if not pairs and _has_pictures(root):
        pairs = _in_two_folders(root, root)
    if not pairs:
        raise DataError(f"data.images: there is no folder {root / images}; give data.root, data.images and data.masks")
    return _numbered(pairs)


def _in_folders_of_samples(root: Path, images: str, masks: str) -> list[Pair]:
    pairs = []
    for folder in sorted(p for p in root.iterdir() if not is_hidden(p.name) and p.is_dir()):
        if (folder / images).is_dir() and (folder / masks).is_dir():
            pictures = list(pictures_in(folder / images, "data.images").values())
            if len(pictures) > 1:
                raise DataError(
                    f"data.images: expected one image in {folder / images}, the folder of one sample, got "
                    f"{len(pictures)}, such as {pictures[1].name}; give data.root: {folder}, or a folder to each image"
                )
            found = pictures_in(folder / masks, "data.masks")
            files = tuple(found[n] for n in sorted(found, key=natural))
            pairs.append(Pair(0, pictures[0], files, stem(pictures[0].name), folder=folder.name))
    if len({pair.name for pair in pairs}) < len(pairs):
        return [replace(pair, name=pair.folder) for pair in pairs]
    return [replace(pair, folder="") for pair in pairs]


def check_names(pairs: Sequence[Pair], split: str) -> None:
    """Raises DataError for two samples of one name in a split: files of predictions and figures are called after it."""
    name, count = Counter(pair.name for pair in pairs).most_common(1)[0] if pairs else ("", 0)
    if count > 1:
        same = [pair.image for pair in pairs if pair.name == name]
        raise DataError(
            f"data.images: expected samples of different names in the {split} split, got {count} called {name}, "
            f"{same[0]} and {same[1]}; rename one of them"
        )


def _numbered(pairs: Sequence[Pair]) -> list[Pair]:
    return [replace(pair, index=i) for i, pair in enumerate(pairs)]


def _has_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(is_picture(path, KINDS) for path in folder.iterdir())


def _split_folders(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    return {name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS}


def _in_split(images: Path, masks: Path, split: str) -> list[Pair]:
    return [replace(pair, split=split) for pair in _in_two_folders(images, masks)]


def _in_two_folders(images: Path, masks: Path) -> list[Pair]:
    pictures = pictures_in(images, "data.images")
    if images.resolve() == masks.resolve():
        labels = {name: path for name, path in pictures.items() if _owner(name, pictures) not in (None, name)}
        pictures = {name: path for name, path in pictures.items() if name not in labels}
        if not labels:
            raise DataError(
                f"data.masks: images and masks are both in {images}, but no name says which is a mask of which image; "
                "call them x.png and x_mask.png, or put the masks into a folder of their own"
            )
    else:
        labels = _by_stem(sorted(masks.iterdir()), "data.masks") if masks.is_dir() else pictures_in(masks, "data.masks")
    owned: dict[str, list[Path]] = {name: [] for name in pictures}
    strangers = []
    for name in sorted(labels, key=natural):
        owner = _owner(name, pictures)
        owned[owner].append(labels[name]) if owner in owned else strangers.append(labels[name])  # type: ignore[index]
    if images.resolve() != masks.resolve():
        for name in [name for name in owned if (masks / name).is_dir() and not name.lower().endswith(".zarr")]:
            found = pictures_in(masks / name, "data.masks")
            owned[name] += [found[n] for n in sorted(found, key=natural)]
    alone = [pictures[name] for name, files in owned.items() if not files]
    for key, files, here, there in (("masks", alone, images, masks), ("images", strangers, masks, images)):
        if files:
            raise DataError(
                f"data.{key}: {len(files)} of the files in {here} have no counterpart of the same name in {there}, "
                f"first {files[0].name}"
            )
    return [Pair(0, path, tuple(owned[name]), name) for name, path in pictures.items()]


def _owner(mask: str, images: Iterable[str]) -> str | None:
    """The image that a mask's name belongs to: the same name, or the name before an ending."""
    images = list(images) if not isinstance(images, dict) else images
    found = _MASK.fullmatch(mask)
    if found is not None and found[1] in images:
        return found[1]
    if mask in images:
        return mask
    bases = [mask] if found is None else [found[1], mask]
    for name in images:
        plain = _IMAGE.fullmatch(name)
        if plain is not None and plain[1] in bases:
            return name
    return None


# ---------------------------------------------------------------------- splits


def in_blocks(pairs: Sequence[Pair], val_fraction: float, test_fraction: float) -> dict[str, list[Pair]]:
    """Train, then validation, then test, in natural order: neighbouring slices of a stack do not part."""
    ordered = sorted(pairs, key=lambda p: (natural(_file(p)), p.part or 0))
    val, test = (round(len(ordered) * share) for share in (val_fraction, test_fraction))
    train = len(ordered) - val - test
    return {"train": ordered[:train], "val": ordered[train : train + val], "test": ordered[train + val :]}


def in_folds(pairs: Sequence[Pair], fold: int, folds: int) -> dict[str, list[Pair]]:
    """Fold `fold` tests, the next one validates, the others train; images are dealt out by a hash of their names.

    Raises:
        DataError: fewer images than folds.
    """
    names = sorted({_file(p) for p in pairs}, key=lambda n: hashlib.sha256(n.encode()).hexdigest())
    if len(names) < folds:
        raise DataError(f"data.folds: {folds} folds need as many images, got {len(names)}; give fewer")
    of = {name: place % folds for place, name in enumerate(names)}
    kind = {fold: "test", (fold + 1) % folds: "val"}
    parts: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
    for pair in pairs:
        parts[kind.get(of[_file(pair)], "train")].append(pair)
    return parts


def from_file(path: Path, pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The splits of a CSV with columns `id` (name, ending or not; the folder's name where it is the sample's) and
    `split`; images of another split are left out, and rows of images that are not there passed over, with a warning
    each.

    The habits of spreadsheets are taken: a byte-order mark, `;` or tabs, blanks around values, `Train`, `validation`.

    Raises:
        DataError: not readable, short rows, one id in two splits, or an image without a row.
    """
    assigned: dict[str, str] = {}
    ids = {_id(p) for p in pairs}
    for line, row in enumerate(read_table(path, ("id", "split")), 2):
        name, split = ((row.get(key) or "").strip() for key in ("id", "split"))
        if not name and not split:
            continue
        if not name or not split:
            raise DataError(f"data.split_file: row {line} of {path} lacks its {'split' if name else 'id'}")
        if name not in ids and Path(name).suffix.lower() in KINDS:
            name = stem(Path(name).name)
        split = SPLITS.get(split.lower(), split)
        if assigned.setdefault(name, split) != split:
            raise DataError(f"data.split_file: {path} puts {name} into {assigned[name]} and into {split}; keep one row")
    missing = [p.name for p in pairs if _id(p) not in assigned]
    if missing:
        raise DataError(
            f"data.split_file: {path} has no row for {len(missing)} images, first {few(missing, 1).split(' and ')[0]}"
        )
    strangers = sorted(assigned.keys() - ids, key=natural)
    if strangers:
        rank_zero_warn(
            f"data.split_file: {len(strangers)} of the {len(assigned)} images that {path} names are not there, first "
            f"{strangers[0]}; their rows are passed over"
        )
    other = [p for p in pairs if assigned[_id(p)] not in _TAKEN]
    if other:
        names = sorted({assigned[_id(p)] for p in other})
        rank_zero_warn(
            f"data.split_file: {path} leaves {len(other)} of {len(pairs)} images out, their split is "
            f"{few([repr(name) for name in names], 3)}; the splits that are used are train, val and test"
        )
    return {s: [p for p in pairs if assigned[_id(p)] == s] for s in _TAKEN}


def _id(pair: Pair) -> str:
    return pair.folder or stem(pair.image.name)


def _file(pair: Pair) -> str:
    """What all slices of a file have in common, and no other file of the data set has."""
    return pair.folder or pair.image.name
