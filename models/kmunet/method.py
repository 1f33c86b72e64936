"""KM-UNet: segmentation with a U-Net whose every kernel element is a learnable B-spline function."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MetricCollection

from framework.deploy.form import InferenceForm
from framework.distributed import say
from framework.errors import ConfigError, DivergenceError
from framework.figures import edge_strength_maps, outside_fractions, spline_curves
from framework.method import ADAM, LOSS_CHECK_EVERY, Batch, Split
from framework.metrics import overlap_metrics
from framework.nn import KOrigins, SplineLayer, observe, spline_layers
from framework.nn.modes import has_values
from framework.nn.splines.bspline import Tail
from framework.nn.splines.expansion import Base, Implementation
from framework.nn.splines.options import SplineOptions
from models.kmunet.inference import forms
from models.kmunet.network import Activation, KMUNetwork, Up
from models.kmunet.weights import as_lines, convert_moments
from models.losses import Loss, segmentation_loss
from models.segmentation import check_images
from models.segmenter import SegmentationMethod

__all__ = ["KMUNet", "Loss", "segmentation_loss"]


class KMUNet(SegmentationMethod):
    """A U-Net of spline convolutions: normalisation, then sum over c, i, j of phi_{o,c,i,j}(x), no nodal activation.

    Args:
        width: channels of the first stage.
        stages: number of poolings.
        spline_stages: the stages (0 .. stages, the last being the bottom) that are spline stages; None: all.
        grid_size: cells of every spline, or one number per stage.
        max_grid_size: cells to allocate room for, or one number per stage; None: no room for GridExtension.
        spline_order: 1, 2 or 3.
        grid_range: [low, high] of the grid in standard deviations, because a normalisation stands in front.
        base: None (the splines alone), `silu` or `linear`.
        tail: `linear`, `clamp` or `zero` outside the grid.
        implementation: `auto`, `dense`, `scatter`, `recompute` (least memory) or `operator`, see KANConv2d.
        rank: R shapes per input channel that its edges share, see KANConv2d; None: every edge has its own. Neither the
            grid nor single edges of such a network can be changed.
        up: `bilinear` or `transposed`.
        korigins: intensities of a K-Origins layer in front, for raw 16-bit images; None: no such layer.
        baseline: null: KM-UNet; `equal_parameters`: the plain U-Net (convolution, normalisation, ReLU) whose number of
            parameters is nearest; a number: the plain U-Net of this width.
        loss: one of `SegmentationMethod`'s, or a sum.
        compile: compiles the network with torch.compile; a cold compilation takes about a minute on a CPU.
        shape: [channels, kernel height, kernel width] of every unit; written by structural pruning.
        activation: `relu` puts the spline convolutions into the units of the plain U-Net (convolution, normalisation,
            ReLU), so that with a trained plain U-Net as `initial_weights` training begins at its function; null:
            normalisation, then splines, and nothing else.
        optimizer: any of torch's; with GridExtension one whose moments can be carried over.
        **shared: `in_channels`, `num_classes`, `ignore_index`, `tile`, `class_weights` of `SegmentationMethod`;
            `lr_scheduler`, `lr_interval` and `memory` of BaseMethod.

    Raises:
        ConfigError: arguments that do not go together.
    """

    decided_by_state = ("grid_size", "korigins")
    monitor = "val/dice"

    def __init__(
        self,
        *,
        width: int = 8,
        stages: int = 3,
        spline_stages: list[int] | None = None,
        grid_size: int | list[int] = SplineOptions.grid_size,
        max_grid_size: int | list[int] | None = SplineOptions.max_grid_size,
        spline_order: int = SplineOptions.spline_order,
        grid_range: Sequence[float] = SplineOptions.grid_range,
        base: Base | None = SplineOptions.base,
        tail: Tail = SplineOptions.tail,
        implementation: Implementation = SplineOptions.implementation,
        rank: int | None = SplineOptions.rank,
        up: Up = "bilinear",
        korigins: list[float] | None = None,
        baseline: Literal["equal_parameters"] | int | None = None,
        loss: Loss = "cross_entropy+dice",
        compile: bool = False,
        shape: list[list[int]] | None = None,
        activation: Activation | None = None,
        optimizer: OptimizerCallable = ADAM,
        **shared: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, loss=loss, **shared)
        in_channels, num_classes = self.in_channels, self.num_classes
        self.korigins = None if korigins is None else KOrigins(in_channels, korigins)
        grids = per_stage("grid_size", grid_size, stages)
        rooms = grids if max_grid_size is None else per_stage("max_grid_size", max_grid_size, stages)
        spline = SplineOptions(
            spline_order=spline_order,
            grid_range=grid_range,
            base=base,
            tail=tail,
            implementation=implementation,
            rank=rank,
        )
        chosen = list(range(stages + 1)) if spline_stages is None else spline_stages
        if any(s not in range(stages + 1) for s in chosen):
            raise ConfigError(f"model.spline_stages: expected stages from 0 to {stages}, got {chosen}")
        channels = in_channels if self.korigins is None else self.korigins.out_channels

        def network(width: int, chosen: Sequence[int]) -> KMUNetwork:
            return KMUNetwork(channels, num_classes, width, stages, chosen, grids, rooms, spline, up, shape, activation)

        if baseline is None:
            self.network = network(width, chosen)
        elif baseline == "equal_parameters":
            self.network = network(equal_parameter_width(network, width, chosen), [])
        elif isinstance(baseline, int):
            self.network = network(baseline, [])
        else:
            raise ConfigError(f"model.baseline: expected null, equal_parameters or a width, got {baseline!r}")
        if compile:
            self.network.compile()

    def forward(self, image: Tensor) -> Tensor:
        """(B, N, H, W) float32 -> (B, C, H, W) logits."""
        check_images(image, self.in_channels, self.network.head.weight.dtype)
        return self.network(image if self.korigins is None else self.korigins(image))

    def setup(self, stage: str) -> None:
        """Says how large the network is."""
        super().setup(stage)
        say(f"{type(self).__name__}: {self.network.live_parameters()} live parameters")

    # ------------------------------------------------------------------ the method

    def step(self, batch: Batch, split: Split) -> dict[str, Tensor]:
        """The loss, averaged over the samples, and the predicted classes."""
        self.check(batch)
        logits = self(batch["image"])
        self._check_finite(logits, batch["image"])
        return {"loss": self.pixel_loss(logits, batch["mask"]), "preds": logits.argmax(1), "target": batch["mask"]}

    def configure_metrics(self, split: Split) -> MetricCollection:
        """Dataset-level `dice` and `iou` (foreground means) and those of every class."""
        return overlap_metrics(self.num_classes, self.ignore_index, by_class=True, validate_args=False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Coefficients apart from the rest, so that weight decay and SGD's rate can follow the grid."""
        layers = spline_layers(self.network).values()
        coefficients = [layer.coefficients for layer in layers if layer.rank is None]
        inside = {id(p) for p in coefficients}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in inside]
        groups: list[dict[str, Any]] = [{"params": rest, "name": "rest"}]
        return [{"params": coefficients, "name": "coefficients"}, *groups] if coefficients else groups

    def figures(self, batch: Batch) -> Mapping[str, Figure]:  # type: ignore[override]
        """Predictions; for spline networks the learned functions, edge strengths and out-of-range shares."""
        layers = spline_layers(self.network)
        with torch.compiler.set_stance("force_eager"), observe(layers) as moments:
            preds = self(batch["image"].to(self.device)).argmax(1)
        panel = self.panel(batch, preds)
        if not layers:
            return {"segmentation": panel}
        named = {name.removeprefix("units.").removesuffix(".conv"): name for name in layers}
        shown = {short: (layers[name], moments[name]) for short, name in named.items()}
        return {
            "segmentation": panel,
            "splines": spline_curves(shown),
            "edge_strength": edge_strength_maps(shown),
            "outside": outside_fractions({name: seen.outside_fraction() for name, (_, seen) in shown.items()}),
        }

    # ------------------------------------------------------------------ pruning and checkpoints of other grids

    def channel_groups(self) -> list[list[tuple[SplineLayer, int]]]:
        """For SplinePruning: input channels that must go together."""
        return self.network.channel_groups()

    def shrunk(self) -> "KMUNet":
        """The same function as a smaller network: without dead channels and without dead kernel borders."""
        shape, kept = self.network.shrunk_shape()
        # the command line adds notes of its own, which start with an underscore
        arguments = {key: value for key, value in self.hparams.items() if not key.startswith("_")}
        smaller = type(self)(**{**arguments, "shape": shape, "compile": False})
        smaller.network.copy_from(self.network, kept)
        rest = {k: v for k, v in self.state_dict().items() if not k.startswith("network.")}
        smaller.load_state_dict(rest, strict=False)
        return smaller.to(self.device)

    def inference_forms(self) -> list[InferenceForm]:
        """For `framework export`: the network without pruned channels, its splines as tables."""
        small = self.shrunk().eval()
        return forms(small.network, small.korigins, self, self.in_channels, self.preprocessing)

    def translate_weights(self, stored: dict[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """A plain U-Net's convolutions as splines that are lines."""
        return as_lines(self, stored)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also converts optimizer moments of another grid; the coefficients convert themselves."""
        super().on_load_checkpoint(checkpoint)
        order = [p for group in self.parameter_groups() for p in group["params"]]
        for state in checkpoint.get("optimizer_states", ()):
            convert_moments(self, order, checkpoint["state_dict"], state)

    # ------------------------------------------------------------------ checks

    def save_memory(self) -> str | None:
        """`implementation: recompute` for every spline layer."""
        layers = list(spline_layers(self.network).values())
        for layer in layers:
            layer.implementation = "recompute"
        return "model.implementation: recompute" if layers else None

    def _check_finite(self, logits: Tensor, image: Tensor) -> None:
        # reading a value waits for the device
        if not has_values(logits):
            return
        if logits.is_cuda and self.attached_trainer is not None and self.global_step % LOSS_CHECK_EVERY:
            return
        if bool(torch.isfinite(logits).all()):
            return
        raise DivergenceError(
            f"the logits are not finite at step {self.global_step if self.attached_trainer is not None else 0}: "
            f"{first_not_finite(self.network, image, self.korigins)}; look at the images for NaN or infinity, or lower "
            "the learning rate"
        )


def per_stage(name: str, value: int | list[int], stages: int) -> list[int]:
    """One number per stage, from one for all or a list."""
    values = [value] * (stages + 1) if isinstance(value, int) else list(value)
    if len(values) != stages + 1:
        raise ConfigError(f"model.{name}: expected one number or {stages + 1} (stages 0 to {stages}), got {value!r}")
    return values


def equal_parameter_width(network: Any, width: int, spline_stages: Sequence[int]) -> int:
    """The plain U-Net's width whose parameter count is nearest to the spline network's."""
    with torch.device("meta"):
        wanted = sum(
            (p[: m.basis] if n in ("coefficients", "shapes") and isinstance(m, SplineLayer) else p).numel()
            for m in network(width, spline_stages).modules()
            for n, p in m.named_parameters(recurse=False)
        )
        count, best = 0, (float("inf"), 1)
        candidate = 0
        while count < wanted:
            candidate += 1
            count = sum(p.numel() for p in network(candidate, []).parameters())
            best = min(best, (abs(count - wanted), candidate))
    return best[1]


def first_not_finite(network: nn.Module, image: Tensor, front: nn.Module | None = None) -> str:
    """Names the first place where a forward pass stops being finite."""
    if not bool(torch.isfinite(image).all()):
        return "the image itself holds NaN or infinite values"
    found: list[str] = []
    handles = []
    for name, module in network.named_modules():
        if next(module.children(), None) is None or isinstance(module, SplineLayer):

            def look(_: Any, inputs: Any, output: Tensor, name: str = name) -> None:
                if not found and not bool(torch.isfinite(output).all()):
                    found.append(name)

            handles.append(module.register_forward_hook(look))
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            network(image if front is None else front(image))
    finally:
        for handle in handles:
            handle.remove()
    return f"layer network.{found[0]} gives the first NaN or infinite value" if found else "no layer repeats it"
