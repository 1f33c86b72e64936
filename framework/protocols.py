"""What a method may ask of a data module, and a callback of a method: small protocols, never a concrete class.

A class has a protocol when it has its methods; nothing is to be inherited or registered.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from framework.nn.splines.pruning import ChannelGroup

if TYPE_CHECKING:
    from framework.deploy.form import InferenceForm

# ---------------------------------------------------------------------- asked of a data module


@runtime_checkable
class HasDatasets(Protocol):
    """A data module whose datasets can be looked at, as BaseDataModule's: statistics, class maps, linear probe."""

    datasets: dict[str, Dataset]


def datasets_of(data: Any) -> Mapping[str, Any]:
    """The datasets of a data module by split; none where it has none, or keeps something else under that name."""
    found = data.datasets if isinstance(data, HasDatasets) else None
    return found if isinstance(found, Mapping) else {}


@runtime_checkable
class HasClassStatistics(Protocol):
    """A data module that knows the intensities of its classes: KOriginsSegmentation with `class_statistics`."""

    def class_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of every class, each (C, N), background first."""
        ...


@runtime_checkable
class HasClassCounts(Protocol):
    """A data module that has counted its training masks: `class_weights: balanced` of the segmenters."""

    def class_counts(self) -> np.ndarray:
        """(C,) pixels of every class."""
        ...


@runtime_checkable
class HasClassNames(Protocol):
    """A data module whose labels have names: MasterKeyClassifier compares their number with its own, and
    SegmentationReport writes them beside its confusions."""

    @property
    def class_names(self) -> list[str]:
        """Names in the order of the labels."""
        ...


@runtime_checkable
class HasImages(Protocol):
    """A data module whose splits are whole images: LevelsOfExperts."""

    @property
    def image_names(self) -> list[str]:
        """Names in the order of `index`."""
        ...

    @property
    def image_sizes(self) -> list[list[int]]:
        """[height, width] of every image."""
        ...


@runtime_checkable
class NamesSamples(Protocol):
    """A data module that names its samples: prediction files and figures are called by these."""

    def sample_name(self, index: int) -> str:
        """Name of the sample with that `index`, without a suffix."""
        ...


@runtime_checkable
class HasCalibration(Protocol):
    """A data module with pictures set aside for recalibration: FilterReplacement."""

    def calibration_dataset(self) -> Dataset:
        """Samples with the key `image`."""
        ...


@runtime_checkable
class HasPreprocessing(Protocol):
    """A data module whose way of reading files belongs to the trained network: BaseMethod keeps it in checkpoints."""

    def preprocessing(self) -> dict[str, Any]:
        """Plain values, with `class_path`, the data module's class."""
        ...

    def use_preprocessing(self, stored: Mapping[str, Any]) -> None:
        """Takes over what a checkpoint holds; called before validate, test and predict."""
        ...


@runtime_checkable
class ChecksSizes(Protocol):
    """A data module that knows the sizes of its pictures before they are read: the segmenters ask before they begin."""

    def check_sizes(self, least: int) -> None:
        """Refuses, by name, a picture or a training crop with a side below `least` pixels."""
        ...


class Large(Protocol):
    """A picture that is predicted tile by tile: what WritesPredictions hands to PredictionWriter."""

    name: str
    size: tuple[int, int]
    #: (y0, y1, x0, x1) -> (N, h, w) float32, as the network wants it
    read: Callable[[int, int, int, int], np.ndarray]

    @property
    def tiles(self) -> tuple[int, int]:
        """How many tiles are done, and how many there are."""
        ...

    def is_done(self, y0: int, x0: int) -> bool:
        """Whether the tile that begins there is."""
        ...

    def put(self, y0: int, x0: int, classes: np.ndarray, probabilities: np.ndarray | None) -> None:
        """Keeps a tile."""
        ...

    def parts(self) -> int:
        """How often `finish` calls `step`."""
        ...

    def finish(self, step: Callable[[], None]) -> None:
        """Writes the files; what `step` raises leaves the tiles for another time."""
        ...


@runtime_checkable
class HasInputContract(Protocol):
    """A data module that can say how its pictures became samples: kept in checkpoints, told in exported files."""

    def input_contract(self) -> dict[str, Any]:
        """Plain values, `class_names` among them."""
        ...


@runtime_checkable
class WritesPredictions(Protocol):
    """A data module that knows how its predictions are to be written: PredictionWriter."""

    def want_predictions(self, folder: Path, options: Mapping[str, Any], plan: Callable[[], dict[str, Any]]) -> None:
        """Called in `setup`.

        Args:
            folder: where they go.
            options: `probabilities`, `overlays`, and `grid`: size -> (side, rows, columns) of the tiles of a picture
                that is to be read by windows, None for one that is read as a whole.
            plan: plain values that say with what is predicted; asked when the network is complete.
        """
        ...

    def write_prediction(self, folder: Path, index: int, key: str, value: np.ndarray) -> bool:
        """Writes one sample's prediction; False leaves it to the caller."""
        ...

    def large_prediction(self, index: int) -> Large:
        """A sample that came without an `image`."""
        ...

    def end_predictions(self, complete: bool) -> None:
        """The end on every rank; `complete`: all is written, so that tables can be put together."""
        ...


# ---------------------------------------------------------------------- asked of a method


@runtime_checkable
class MeetsData(Protocol):
    """A method that builds or initialises something from the data; BaseMethod, for which `framework.lifecycle` asks."""

    def meet_data(self) -> None:
        """Called at the start of every verb, before any callback or hook of the module is set up."""
        ...

    def initialise_once(self, evaluating: bool = False) -> None:
        """Called before the optimizer is built and before an evaluation, with a checkpoint restored or not."""
        ...


@runtime_checkable
class DrawsFigures(Protocol):
    """What FigureWriter asks of a module."""

    def figures(self, batch: Any) -> Mapping[str, Figure]:
        """Figures by name, drawn from one evaluation batch."""
        ...


@runtime_checkable
class MeasuresSamples(Protocol):
    """A module that keeps what it counted for every sample of a test: SegmentationReport."""

    def take_samples(self) -> list[dict[str, Any]]:
        """Plain values of every sample since the last call, in the order of the batches.

        Each has `index` (or None), `confusion` ((C, C) counts, rows truth), `ignored` (a class without figures, or
        None) and `objects` (None, or what `Matches.plain` gives).
        """
        ...

    def sample_figures(self, samples: Sequence[Any], titles: Sequence[str]) -> Mapping[str, Figure]:
        """Figures by name of samples as the network saw them, normalised and on its device, each under its title."""
        ...


@runtime_checkable
class PredictsInTiles(Protocol):
    """A module that predicts pictures larger than memory: PredictionWriter."""

    #: whether `predict_step` also gives `probabilities`
    predict_probabilities: bool

    def tile_grid(self, size: tuple[int, int]) -> tuple[int, int, int] | None:
        """Side of a tile, and rows and columns of them; None: the picture is looked at as a whole."""
        ...

    def in_tiles(
        self, read: Callable[[int, int, int, int], np.ndarray], size: tuple[int, int], skip: Callable[[int, int], bool]
    ) -> Iterator[tuple[int, int, Tensor]]:
        """First row, first column and logits (C, h, w) of every tile that is not to be skipped."""
        ...


@runtime_checkable
class HasFeatures(Protocol):
    """What LinearProbe asks of a module."""

    def features(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) images -> (B, D) features."""
        ...


@runtime_checkable
class TakesSegmentation(Protocol):
    """A model that asks for class maps: SegmentationMaps."""

    @property
    def segmentation_classes(self) -> int | None:
        """Number of classes; None when it wants no map."""
        ...

    def set_segmentation_maps(self, maps: Tensor) -> None:
        """(images, H, W) uint8, laid out like the batches' `image`."""
        ...


@runtime_checkable
class GroupsChannels(Protocol):
    """A module that knows which input channels of its layers are one and the same channel: SplinePruning."""

    def channel_groups(self) -> list[ChannelGroup]:
        """Groups of (layer, input channel)."""
        ...


@runtime_checkable
class Shrinks(Protocol):
    """A module that can rebuild itself without what has been pruned: SplinePruning with `structural`."""

    def shrunk(self) -> LightningModule:
        """A smaller module of the same class and function."""
        ...


@runtime_checkable
class HasInferenceForms(Protocol):
    """A method that can leave the trainer: `framework export`."""

    def inference_forms(self) -> "Sequence[InferenceForm]":
        """Plain modules with what goes in and comes out."""
        ...
