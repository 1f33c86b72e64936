"""FINOLA as an autoencoder (arXiv 2305.16319, 2310.12976)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image import StructuralSimilarityIndexMeasure

from framework.errors import ConfigError
from framework.figures import reconstruction_grid, residual_map, speed_spectrum
from framework.method import BaseMethod, Batch, Split
from framework.metrics import float_psnr, float_psnr_pooled
from framework.nn import Finola, commutator, pde_residual, wave_speeds
from framework.nn.waves.finola import Compile, Scheme
from models.finola.encoder import Pooling
from models.finola.network import Expansion, FinolaNetwork

ADAMW = cast(OptimizerCallable, {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.05}})
Loss = Literal["mse", "l1", "l1+mse"]


def pixel_loss(kind: Loss, preds: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, mean absolute error or their sum, on pixels in [-1, 1].

    Which of them is not in the published text; ours is in docs/finola.md.

    Args:
        kind: `mse`, `l1` or `l1+mse`.
        preds: any shape, in [0, 1] up to over- and undershoot.
        target: the same shape, in [0, 1].
    """
    difference = 2 * (preds.float() - target.float())
    loss = difference.new_zeros(())
    if kind in ("mse", "l1+mse"):
        loss = loss + difference.square().mean()
    if kind in ("l1", "l1+mse"):
        loss = loss + difference.abs().mean()
    return loss


def check_rate(matrix_lr: float | None) -> None:
    """Refuses a learning rate of the matrices that is not positive; None is the optimizer's.

    Raises:
        ConfigError: such a rate.
    """
    if matrix_lr is not None and matrix_lr <= 0:
        raise ConfigError(f"model.matrix_lr: expected a positive learning rate or null, got {matrix_lr}")


def parameter_groups(module: nn.Module, matrix_lr: float | None = None) -> list[dict[str, Any]]:
    """Weight decay on convolutions and linear weights; none on biases, norms, seeds, tables and FINOLA's matrices.

    Args:
        module: with everything that learns.
        matrix_lr: learning rate of the matrices; None: the optimizer's. Adam moves every entry by about the rate, so a
            step moves a C x C matrix by up to C times the rate: wide maps need a smaller one.

    Returns:
        `decayed`, `not_decayed` and, with `matrix_lr`, `matrices`.
    """
    growth = {id(p) for m in module.modules() if isinstance(m, Finola) for p in m.parameters()}
    plain = {id(p) for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in [m.weight]}
    plain |= {id(m.in_proj_weight) for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if matrix_lr is not None and id(p) in growth]
    apart = plain | {id(p) for p in matrices}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) in plain], "name": "decayed"},
        {"params": [p for p in parameters if id(p) not in apart], "weight_decay": 0.0, "name": "not_decayed"},
    ]
    if matrices:
        groups.append({"params": matrices, "weight_decay": 0.0, "lr": matrix_lr, "name": "matrices"})
    return groups


def reconstruction_metrics(split: Split) -> dict[str, Metric]:
    """`psnr`: mean over images of each image's PSNR; `psnr_pooled`: PSNR of the mean squared error; `ssim`. Range 1."""
    metrics: dict[str, Metric] = {"psnr": float_psnr(), "psnr_pooled": float_psnr_pooled()}
    if split != "train":
        metrics["ssim"] = StructuralSimilarityIndexMeasure(data_range=1.0)
    return metrics


class FinolaAutoencoder(BaseMethod):
    """An image as M vectors and matrices shared by all images: encode, roll out, decode.

    Args:
        channels: C of a vector, the number of wave equations.
        paths: M vectors, each rolled out by itself and summed; the latent has M C floats.
        image_size: side of the images in pixels; as `data.image_size`.
        map_size: side of the map in cells: image_size divided by 1, 2, 4, ...
        expansion: `finola`, or a control: `repeat` (the vector in every cell), `repeat_position` (and a learned table).
        scheme: `separable`, `row_first`, `column_first` or `wavefront`.
        matrices: 4, 2 (A- = -A+) or 1 (B = A as well).
        normalize: False leaves the normalisation out (a control).
        eps: added to the variance in the normalisation.
        init_std: s, the matrices start from N(0, s^2 / C).
        checkpoint: recompute the rollout in backward, path by path.
        start: [row, column] of the vectors in the map; None: its centre.
        encoder: `mobile_former`, `cnn` or a timm model's name.
        encoder_width: channels after the first convolution of the first two.
        encoder_depth: their blocks per halving.
        stride: input pixels per feature cell.
        pooling: `attentional`, or `linear`: all cells through one linear layer.
        seeds: of the attentional pooling; they divide M C.
        decoder_width: channels behind the decoder's first convolution.
        pretrained: timm's weights for a timm encoder.
        loss: `mse`, `l1` or `l1+mse`, on pixels in [-1, 1].
        matrix_lr: learning rate of FINOLA's matrices; None: the optimizer's. Above C = 128 take about 64 / C of it.
        optimizer: with weight decay on convolutions and linear layers only.
        lr_scheduler: None: constant.
        lr_interval: `epoch` or `step`.
        compile: `regional`: FINOLA's repeated step compiled, and nothing else.

    Raises:
        ConfigError: arguments that do not go together.
    """

    monitor = "val/psnr"
    monitor_mode = "max"

    def __init__(
        self,
        channels: int = 128,
        paths: int = 1,
        image_size: int = 64,
        map_size: int = 16,
        expansion: Expansion = "finola",
        scheme: Scheme = "separable",
        matrices: int = 4,
        normalize: bool = True,
        eps: float = 1e-5,
        init_std: float = 0.3,
        checkpoint: bool = False,
        start: list[int] | None = None,
        encoder: str = "mobile_former",
        encoder_width: int = 32,
        encoder_depth: int = 2,
        stride: int = 16,
        pooling: Pooling = "attentional",
        seeds: int = 1,
        decoder_width: int = 256,
        pretrained: bool = False,
        loss: Loss = "mse",
        matrix_lr: float | None = None,
        optimizer: OptimizerCallable = ADAMW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        compile: Compile | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_interval)
        if loss not in get_args(Loss):
            raise ConfigError(f"model.loss: expected one of {', '.join(get_args(Loss))}, got {loss!r}")
        check_rate(matrix_lr)
        self.loss: Loss = loss
        self.matrix_lr = matrix_lr
        self.network = FinolaNetwork(
            channels,
            paths,
            image_size,
            map_size,
            expansion,
            scheme,
            matrices,
            normalize,
            eps,
            init_std,
            checkpoint,
            start,
            encoder,
            encoder_width,
            encoder_depth,
            stride,
            pooling,
            seeds,
            decoder_width,
            pretrained,
            compile,
        )
        self._grad_norms: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ the method

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> its reconstruction, the same shape, float32, clipped to [0, 1]."""
        return self.network(image).float().clamp(0, 1)

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> latents (B, M, C)."""
        return self.network.encode(image)

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (B, M, C) -> (B, 3, H, W) float32 in [0, 1].

        Raises:
            ConfigError: latents of another model.
        """
        return self.network.decode(latent).float().clamp(0, 1)

    def step(self, batch: Batch, split: Split) -> dict[str, Tensor]:
        """The loss on pixels; `preds` is clipped to [0, 1] for the metrics."""
        image = batch["image"]
        grown = self.network.grow(self.network.encode(image))
        if split == "train" and grown.requires_grad:
            grown.register_hook(self._keep_grad_norms)
        preds = (self.network.decoder(grown) + 1) / 2
        loss = pixel_loss(self.loss, preds, image)
        return {"loss": loss, "preds": preds.detach().float().clamp(0, 1), "target": image}

    def configure_metrics(self, split: Split) -> dict[str, Metric]:
        """Both definitions of PSNR, and SSIM in evaluation; all on [0, 1]."""
        return reconstruction_metrics(split)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weight decay on convolutions and linear layers, none on FINOLA's matrices, norms, biases and seeds."""
        return parameter_groups(self, self.matrix_lr)

    def _keep_grad_norms(self, grad: Tensor) -> None:
        row, col = self.network.start or (side // 2 for side in self.network.map_size)
        corner = max(((r, c) for r in (0, -1) for c in (0, -1)), key=lambda rc: self._distance(rc, (row, col)))
        per_cell = grad.detach().float().norm(dim=1)
        self._grad_norms = {
            "train/grad_centre": per_cell[:, row, col].mean(),
            "train/grad_corner": per_cell[:, corner[0], corner[1]].mean(),
        }

    def _distance(self, corner: tuple[int, int], start: Sequence[int]) -> int:
        return sum(abs(c % side - s) for c, s, side in zip(corner, start, self.network.map_size, strict=True))

    def on_after_backward(self) -> None:
        """Logs the norm of the loss's gradient at the map's start and at its farthest corner, mean over the batch."""
        if self._grad_norms and self.attached_trainer is not None:
            self.log_dict(self._grad_norms, on_step=True, on_epoch=False)
        self._grad_norms = {}

    # ------------------------------------------------------------------ what a run leaves behind

    def figures(self, batch: Batch) -> Mapping[str, Figure]:  # type: ignore[override]
        """Reconstructions, and for FINOLA the wave speeds and the PDE's residual over the map."""
        image = batch["image"].to(self.device)
        latent = self.encode(image)
        preds = self.decode(latent)
        title = f"C = {self.network.channels}, M = {self.network.paths}, {latent[0].numel()} floats"
        drawn = {"reconstruction": reconstruction_grid(image.cpu().numpy(), preds.cpu().numpy(), title)}
        growth = self.network.growth
        if isinstance(growth, Finola):
            right, left, down, up = growth.directional().cpu()
            pairs = {"right / down": (right, down), "left / up": (left, up)}
            speeds = {name: wave_speeds(a, b, growth.normalize) for name, (a, b) in pairs.items()}
            drawn["wave_speeds"] = speed_spectrum({name: s.numpy() for name, s in speeds.items()}, title)
            # the PDE is stated for one path; the first stands for all
            first = latent[:, 0].float()
            grown = growth(first, self.network.map_size, self.network.start)
            apart = commutator(growth, first).mean().item()
            residual = pde_residual(growth, grown, self.network.start).nanmean(0).cpu().numpy()
            drawn["pde_residual"] = residual_map(residual, f"{title}; commutator at the start {apart:.3f}")
        return drawn

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`reconstruction` uint8 (B, 3, H, W) and `latent` float32 (B, M, C) under the samples' `index`."""
        latent = self.encode(batch["image"])
        pixels = (255 * self.decode(latent)).round().to(torch.uint8)
        return {"index": batch["index"], "reconstruction": pixels, "latent": latent.float()}
