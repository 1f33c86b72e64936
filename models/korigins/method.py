"""K-Origins: segmentation of raw 16-bit images with trainable intensity origins (arXiv 2409.02281)."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from framework.data import spread, training_set
from framework.distributed import ranks_of
from framework.errors import ConfigError, FrameworkError
from framework.figures import separability
from framework.method import Batch, Split
from framework.metrics import BatchForegroundIoU, ForegroundIoU
from framework.nn import gaussian_mixture_statistics, multi_otsu_statistics, origins_from_statistics
from framework.nn.padding import in_strides
from framework.protocols import HasClassStatistics, HasPreprocessing
from models.korigins.inference import forms
from models.korigins.network import EncoderOptions, KOriginsUNet, Widened
from models.segmentation import check_images
from models.segmenter import SegmentationMethod

#: no picture of a camera stays below; shares of 1 and standardised pictures do
SMALL = 10.0
# the paper's code: Keras' Adam, whose epsilon is 1e-7
KERAS_ADAM = cast(OptimizerCallable, {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4, "eps": 1e-7}})

Origins = Literal["none", "class_statistics", "multi_otsu", "gaussian_mixture", "random"]


class KOriginsSegmentation(SegmentationMethod):
    """A U-Net on raw intensities, with K-Origins layers in its encoder, without, or with one of the controls.

    Args:
        rfl: the network by its receptive field: 8, 18, 38, 78 (one convolution per block) or 14, 32, 68, 140 (two).
        width: filters of the first level (the paper's code: 16).
        origins: where the 2 C first-layer origins begin. `class_statistics`: at mean +- 2 std of every class, from
            `class_mean` and `class_std` or else from the data module; `multi_otsu`, `gaussian_mixture`: the same with
            statistics estimated from the histogram of training images; `random`: N(deep_mean, deep_std); `none`: a
            plain network.
        class_mean: (C,) mean intensities, background first, or (C, N).
        class_std: their standard deviations.
        first_origins: number of first-layer origins with `origins: random`; None: 2 C.
        deep_origins: origins per channel at the deeper levels; None: 1 with one convolution per block, 3 with two.
        deep_mean: mean of the deeper (and random) origins' initial values; the paper's code: 20000, for raw 16-bit
            images. This, `deep_std` and `origin_lr` are in the images' units: normalised images need smaller ones.
        deep_std: their standard deviation; the paper's code: 5000.
        trainable_origins: False freezes every origin (a control).
        widen: [first, deeper] factors on a plain network's encoder widths; the paper compares with 2 C and 3.
        widened: `widen` acts on `both` convolutions of a block, or on the `last` only (the author's committed code).
        batch_norm: normalise after every convolution (a control).
        standardize_input: subtract the training images' mean and divide by their standard deviation (a control).
        data_bias: start the first convolution's thresholds at the class statistics, through its bias (a control).
        bias_lr: learning rate of all biases; None: as the kernels' (a control).
        origin_lr: learning rate of the origins; the paper's code: 100.
        optimizer: of the convolutions; the origins share it at their own learning rate.
        **shared: `in_channels`, `num_classes`, `ignore_index`, `tile`, `loss` (the author's is `cross_entropy`) and
            `class_weights` of `SegmentationMethod`; `lr_scheduler`, `lr_interval` and `memory` of BaseMethod.

    Raises:
        ConfigError: arguments that do not go together.
    """

    decided_by_state = ("origins", "class_mean", "class_std", "deep_mean", "deep_std", "data_bias")
    monitor = "val/iou"
    input_mean: Tensor
    input_std: Tensor
    inference_forms = forms

    def __init__(
        self,
        *,
        rfl: int = 8,
        width: int = 16,
        origins: Origins = "class_statistics",
        class_mean: list[float] | list[list[float]] | None = None,
        class_std: list[float] | list[list[float]] | None = None,
        first_origins: int | None = None,
        deep_origins: int | None = EncoderOptions.deep_origins,
        deep_mean: float = EncoderOptions.deep_mean,
        deep_std: float = EncoderOptions.deep_std,
        trainable_origins: bool = EncoderOptions.trainable_origins,
        widen: list[int] | None = None,
        widened: Widened = EncoderOptions.widened,
        batch_norm: bool = EncoderOptions.batch_norm,
        standardize_input: bool = False,
        data_bias: bool = False,
        bias_lr: float | None = None,
        origin_lr: float = 100.0,
        optimizer: OptimizerCallable = KERAS_ADAM,
        **shared: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **shared)
        in_channels, num_classes = self.in_channels, self.num_classes
        if (class_mean is None) != (class_std is None):
            raise ConfigError("model.class_mean and model.class_std: give both or neither")
        if class_mean is not None and len(class_mean) != num_classes:
            raise ConfigError(f"model.class_mean: expected {num_classes} classes, got {len(class_mean)}")
        if first_origins is not None and origins != "random":
            raise ConfigError(f"model.first_origins: only with origins: random; with {origins} there are 2 C origins")
        if origin_lr < 0 or (bias_lr is not None and bias_lr < 0):
            raise ConfigError(f"model.origin_lr and model.bias_lr: expected 0 or more, got {origin_lr} and {bias_lr}")
        if widen is not None and len(widen) != 2:
            raise ConfigError(f"model.widen: expected two factors, first level and deeper, got {widen}")
        self.origins, self.class_mean, self.class_std = origins, class_mean, class_std
        self.standardize_input, self.data_bias = standardize_input, data_bias
        self.origin_lr, self.bias_lr = origin_lr, bias_lr
        count = first_origins if first_origins is not None else 2 * num_classes
        self.network = KOriginsUNet(
            rfl,
            in_channels,
            num_classes,
            width,
            origins=None if origins == "none" else (deep_mean + deep_std * torch.randn(count, in_channels)),
            deep_origins=None if origins == "none" else deep_origins,
            deep_mean=deep_mean,
            deep_std=deep_std,
            trainable_origins=trainable_origins,
            widen=None if widen is None else (widen[0], widen[1]),
            widened=widened,
            batch_norm=batch_norm,
        )
        self.register_buffer("input_mean", torch.zeros(1, in_channels, 1, 1))
        self.register_buffer("input_std", torch.ones(1, in_channels, 1, 1))

    # ------------------------------------------------------------------ initialisation from data

    def adapt(self, data: LightningDataModule | None) -> None:
        """Refuses normalised pictures for origins in raw intensities, which would never meet.

        Raises:
            ConfigError: says what to change on either side.
        """
        trainer = self.attached_trainer
        how = data.preprocessing().get("normalize", "none") if isinstance(data, HasPreprocessing) else "none"
        if how != "none" and trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            _refuse_small(self, f"data.normalize: {how} gives values of about 1", "data.normalize: none")

    def initialise(self, data: LightningDataModule | None) -> None:
        """Origins, input standardisation, thresholds and class weights from the training images."""
        super().initialise(data)
        given: dict[str, Any] = data.preprocessing() if isinstance(data, HasPreprocessing) else {}
        if self.origins != "none" and given.get("normalize") == "none":
            largest = float(np.abs(self._training_intensities(4)).max(initial=0))
            if 0 < largest <= SMALL:
                _refuse_small(self, f"the pictures hold values up to {largest:.3g}", "the camera's numbers")
        if self.origins in ("class_statistics", "multi_otsu", "gaussian_mixture"):
            means, stds = self.class_statistics()
            with torch.no_grad():
                first = self.network.origin_parameters()[0]
                first.copy_(torch.as_tensor(origins_from_statistics(means, stds), dtype=first.dtype).view_as(first))
        if self.standardize_input:
            values = self._training_intensities()
            self.input_mean.copy_(torch.as_tensor(values.mean(0)).view_as(self.input_mean))
            self.input_std.copy_(torch.as_tensor(values.std(0).clip(1e-6)).view_as(self.input_std))
        if self.data_bias:
            self._set_first_bias()

    def class_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of every class, each (C, N): given, known to the data module, or estimated.

        Raises:
            ConfigError: none of these is to be had.
        """
        if self.origins in ("multi_otsu", "gaussian_mixture"):
            estimate = multi_otsu_statistics if self.origins == "multi_otsu" else gaussian_mixture_statistics
            values = self._training_intensities()
            try:
                per_channel = [estimate(channel, self.num_classes) for channel in values.T]
            except FrameworkError as error:
                raise ConfigError(
                    f"model.origins: {self.origins} does not part the training pictures ({error}); give "
                    "model.class_mean and model.class_std, or origins: random"
                ) from error
            return np.stack([m for m, _ in per_channel], 1), np.stack([s for _, s in per_channel], 1)
        known = self._known_statistics()
        if known is None:
            raise ConfigError(
                "model.origins: class_statistics needs model.class_mean and model.class_std, or a data module with "
                f"class_statistics() (got {type(self.data).__name__}); origins: multi_otsu and gaussian_mixture need "
                "neither"
            )
        return known

    def _known_statistics(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The statistics given as arguments, else the data module's, else None; nothing is estimated."""
        shape = (self.num_classes, self.network.in_channels)
        if self.class_mean is not None:
            given = (np.asarray(v, dtype=np.float64) for v in (self.class_mean, self.class_std))
            mean, std = (np.broadcast_to(v.reshape(self.num_classes, -1), shape) for v in given)
            return mean, std
        if not isinstance(self.data, HasClassStatistics):
            return None
        mean, std = self.data.class_statistics()
        check_known(mean, type(self.data).__name__)
        if mean.shape != shape:
            raise ConfigError(
                f"model.num_classes, model.in_channels: expected the data's {mean.shape[0]} classes and "
                f"{mean.shape[1]} channels, got {shape[0]} and {shape[1]}"
            )
        return mean, std

    def _training_intensities(self, images: int = 16) -> np.ndarray:
        """(pixels, N) raw intensities of training images from all over the split."""
        dataset = training_set(self.data)
        if dataset is None:
            raise ConfigError("model: initialisation from data needs a data module with a train dataset of some length")
        pixels = [dataset[i]["image"].flatten(1).T.double().numpy() for i in spread(len(dataset), images)]
        return np.concatenate(pixels)

    def _set_first_bias(self) -> None:
        """Bias = -threshold x kernel sum: filter i changes sign at the i-th class bound (cyclically) on flat input."""
        means, stds = self.class_statistics()
        bounds = torch.as_tensor(origins_from_statistics(means, stds), dtype=torch.float32)
        bounds = (bounds - self.input_mean.view(1, -1)) / self.input_std.view(1, -1)
        conv = next(m for m in self.network.modules() if isinstance(m, torch.nn.Conv2d))
        if conv.in_channels != bounds.shape[1] or conv.bias is None:
            raise ConfigError("model.data_bias: a control for the plain network; set origins: none")
        chosen = bounds[torch.arange(conv.out_channels) % len(bounds)]
        with torch.no_grad():
            conv.bias.copy_(-(conv.weight.sum((2, 3)) * chosen).sum(1))

    # ------------------------------------------------------------------ the method

    def forward(self, image: Tensor) -> Tensor:
        """(B, N, H, W) float32 raw intensities in [0, 65535] -> (B, C, H, W) float32 logits; of any size."""
        check_images(image, self.network.in_channels, self.network.head.weight.dtype)
        if self.standardize_input:
            image = (image - self.input_mean) / self.input_std
        return in_strides(self.network, image, self.network.stride)

    def step(self, batch: Batch, split: Split) -> dict[str, Tensor]:
        """The loss; by default cross-entropy averaged over all pixels, as in the author's code."""
        self.check(batch)
        logits = self(batch["image"])
        return {"loss": self.pixel_loss(logits, batch["mask"]), "preds": logits.argmax(1), "target": batch["mask"]}

    def configure_metrics(self, split: Split) -> dict[str, Metric]:
        """Dataset `iou`, pixel `accuracy`, and on one process `iou_batch`, the figure of the author's code."""
        classes, ignored = self.num_classes, self.ignore_index
        metrics: dict[str, Metric] = {  # `step` has checked the maps
            "iou": ForegroundIoU(classes, ignored, validate_args=False),
            "accuracy": MulticlassAccuracy(classes, average="micro", ignore_index=ignored, validate_args=False),
        }
        if ranks_of(self.attached_trainer)[0] == 1:
            metrics["iou_batch"] = BatchForegroundIoU(classes, ignored, validate_args=False)
        return metrics

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Kernels at the optimizer's learning rate, origins at `origin_lr`, biases at `bias_lr` if given."""
        origins = [p for p in self.network.origin_parameters() if p.requires_grad]
        rest = [p for p in self.network.other_parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": rest, "name": "convolutions"}]
        if self.bias_lr is not None:
            biases = [p for name, p in self.network.named_parameters() if name.endswith("bias") and p.requires_grad]
            chosen = {id(p) for p in biases}
            groups = [
                {"params": [p for p in rest if id(p) not in chosen], "name": "convolutions"},
                {"params": biases, "lr": self.bias_lr, "name": "biases"},
            ]
        if origins:
            groups.append({"params": origins, "lr": self.origin_lr, "name": "origins"})
        return groups

    def save_memory(self) -> str | None:
        """Runs the blocks again in the backward pass; with batch normalisation that would count every batch twice."""
        if self.hparams.get("batch_norm"):
            return None
        self.network.checkpoint = True
        return "blocks that run again in the backward pass"

    def figures(self, batch: Batch) -> Mapping[str, Figure]:  # type: ignore[override]
        """Input, truth, prediction, error and IoU per class; Hellinger distances where class statistics are known."""
        drawn = {"segmentation": self.panel(batch, self(batch["image"].to(self.device)).argmax(1))}
        if (known := self._known_statistics()) is not None:
            mask = batch["mask"].cpu().numpy()
            shares = np.bincount(mask[mask != self.ignore_index].ravel(), minlength=self.num_classes)
            drawn["separability"] = separability(*known, shares / shares.sum())
        return drawn


def check_known(mean: np.ndarray, data: str) -> None:
    """Refuses class means (C, N) that are not numbers: of a class that is nowhere.

    Raises:
        ConfigError: names the classes, and `data`, where they were looked for.
    """
    if absent := np.flatnonzero(~np.isfinite(mean).all(1)).tolist():
        raise ConfigError(
            f"model.origins: class {', '.join(map(str, absent))} is in none of the training images that {data} looked "
            "at, so it has no mean; give model.class_mean and model.class_std, or take the class out"
        )


def _refuse_small(method: KOriginsSegmentation, what: str, instead: str) -> None:
    """Raises ConfigError for origins in the units of a camera, where the pictures are not."""
    begin = method.hparams.get("deep_mean", 0.0)
    if method.origins != "none" and (abs(begin) > 1000 or method.origin_lr > 10):
        raise ConfigError(
            f"model.deep_mean, model.origin_lr: origins begin at {begin}, their rate is {method.origin_lr:g}, but "
            f"{what}; give {instead}, or model.deep_mean 0, model.deep_std 1 and model.origin_lr 0.01"
        )
