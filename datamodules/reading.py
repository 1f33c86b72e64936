"""How files become samples: the settings that belong to a trained network as much as its weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from framework.errors import ConfigError

Normalize = Literal["zscore", "percentile", "depth", "dataset", "none"]
MasksAre = Literal["classes", "instances"]
Targets = Literal["border", "distance"]
Slices = Literal["each", "max"] | int


@dataclass
class Reading:
    """The input contract; SegmentationDataModule explains every field.

    `mean` and `std`, one number per channel, are filled from the training images with `normalize: dataset`;
    `file_channels`, the channels of a file before any are chosen, with a list of `channels`.
    """

    channels: int | list[int] | None = 1
    bit_depth: int | None = None
    labels: list[int] = field(default_factory=lambda: [0, 255])
    normalize: Normalize = "zscore"
    downscale: int = 1
    axes: str | None = None
    slices: Slices | None = None
    masks_are: MasksAre = "classes"
    border: int = 1
    colors: list[list[int]] | None = None
    ignore_label: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    targets: Targets = "border"
    levels: int = 4
    connected: bool = False
    file_channels: int | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be.

        Raises:
            ConfigError: a value out of its range, named as in YAML.
        """
        self._check_image()
        if self.masks_are not in get_args(MasksAre):
            raise ConfigError(f"data.masks_are: expected classes or instances, got {self.masks_are!r}")
        if self.border < 1:
            raise ConfigError(f"data.border: expected at least 1 pixel, got {self.border}")
        if self.targets not in get_args(Targets) or not 2 <= self.levels <= 254:
            raise ConfigError(
                "data.targets, data.levels: expected border or distance, and 2 to 254 levels, got "
                f"{self.targets!r} and {self.levels}"
            )
        if self.targets == "distance" and self.masks_are != "instances":
            raise ConfigError("data.targets: distance is for data.masks_are: instances")
        if self.connected and self.masks_are != "instances":
            raise ConfigError(
                "data.connected: expected data.masks_are: instances beside it, got classes; give both, or neither"
            )
        if len(set(self.labels)) != len(self.labels) or not 2 <= len(self.labels) <= 255:
            raise ConfigError(f"data.labels: expected 2 to 255 different mask values, got {self.labels}")
        if self.ignore_label is not None and self.ignore_label in self.labels and self.masks_are == "classes":
            raise ConfigError(
                f"data.ignore_label: {self.ignore_label} is also one of data.labels {self.labels}; take it out of one"
            )
        if self.colors is not None:
            colours = [tuple(c) for c in self.colors]
            if not 2 <= len(colours) <= 255 or len(set(colours)) != len(colours) or {len(c) for c in colours} - {3, 4}:
                raise ConfigError(
                    f"data.colors: expected 2 to 255 different colours [red, green, blue], background first, got "
                    f"{self.colors}"
                )

    def _check_image(self) -> None:
        numbers = [self.channels] if isinstance(self.channels, int) else self.channels or [1]
        least = 1 if isinstance(self.channels, int) else 0
        if not numbers or min(numbers) < least or len(set(numbers)) != len(numbers):
            raise ConfigError(
                f"data.channels: expected 1 or more channels, or a list of different positions such as [0, 2], got "
                f"{self.channels}"
            )
        if self.bit_depth not in (None, 8, 16):
            raise ConfigError(f"data.bit_depth: expected null, 8 or 16, got {self.bit_depth}")
        if self.normalize not in get_args(Normalize):
            raise ConfigError(
                f"data.normalize: expected one of {', '.join(get_args(Normalize))}, got {self.normalize!r}"
            )
        if self.downscale < 1:
            raise ConfigError(f"data.downscale: expected at least 1, got {self.downscale}")
        axes = self.axes
        if axes is not None and (len(set(axes)) != len(axes) or not axes.isupper() or not {"Y", "X"} <= set(axes)):
            raise ConfigError(f"data.axes: expected a letter per axis with Y and X, e.g. CYX or ZYX, got {axes!r}")
        if isinstance(self.slices, str) and self.slices not in ("each", "max"):
            raise ConfigError(f"data.slices: expected each, max or a number, got {self.slices!r}")
        if isinstance(self.slices, int) and self.slices < 0:
            raise ConfigError(f"data.slices: expected a number from 0 on, got {self.slices}")

    @property
    def num_classes(self) -> int:
        """Classes of a mask, background included."""
        if self.masks_are == "instances":
            return 3 if self.targets == "border" else 1 + self.levels
        return len(self.labels if self.colors is None else self.colors)

    @property
    def class_names(self) -> list[str]:
        """What a message calls the classes."""
        if self.masks_are != "instances":
            kind, values = ("colour", self.colors) if self.colors else ("mask value", self.labels)
            return [f"{c} ({kind} {value})" for c, value in enumerate(values)]
        if self.targets == "border":
            return ["0 (background)", "1 (inside)", "2 (border)"]
        return ["0 (background)", *(f"{level} (distance level)" for level in range(1, 1 + self.levels))]

    @property
    def class_words(self) -> list[str]:
        """What a figure calls the classes."""
        if self.masks_are == "instances" and self.targets == "border":
            return ["background", "inside", "border"]
        kind = "distance level" if self.masks_are == "instances" else "class"
        return ["background", *(f"{kind} {c}" for c in range(1, self.num_classes))]

    def plain(self) -> dict[str, Any]:
        """As YAML types."""
        return asdict(self)

    def completed(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint's contract, with this one's words on where in a file the network's channels and planes lie.

        Those stay that it leaves open: `axes`, `slices`, and a list of as many `channels` as the network has.

        Raises:
            ConfigError: a list of other than that many.
        """
        own: dict[str, Any] = {name: getattr(self, name) for name in ("axes", "slices") if stored.get(name) is None}
        count = stored.get("channels")
        if isinstance(self.channels, list) and isinstance(count, int):
            if count != len(self.channels):
                raise ConfigError(
                    f"data.channels: expected a list of {count}, as many as the network of the checkpoint takes, got "
                    f"{self.channels}"
                )
            own["channels"] = self.channels
        return {**stored, **own}

    def take_over(self, other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Becomes another contract in place; returns what changed: name -> (was, is)."""
        known = {f.name for f in fields(self)}
        new = Reading(**{key: value for key, value in other.items() if key in known})
        changed = {}
        for name in known:
            was, now = getattr(self, name), getattr(new, name)
            if was != now:
                changed[name] = (was, now)
                setattr(self, name, now)
        return changed
