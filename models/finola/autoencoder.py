"""FINOLA as an autoencoder (arXiv 2305.16319, 2310.12976)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image import StructuralSimilarityIndexMeasure

from framework.batches import need
from framework.compat import loss_factor
from framework.deploy.form import InferenceForm
from framework.figures import reconstruction_grid, residual_map, speed_spectrum
from framework.method import Batch, Split
from framework.metrics import float_psnr, float_psnr_pooled
from framework.nn import Finola, commutator, pde_residual, wave_speeds
from models.finola.encoder import Pooling
from models.finola.inference import autoencoder_forms
from models.finola.method import FinolaMethod, pixel_loss
from models.finola.network import FinolaNetwork
from models.finola.options import Expansion, FinolaOptions


def reconstruction_metrics(split: Split) -> dict[str, Metric]:
    """`psnr`: mean over images of each image's PSNR; `psnr_pooled`: PSNR of the mean squared error; `ssim`. Range 1."""
    metrics: dict[str, Metric] = {"psnr": float_psnr(), "psnr_pooled": float_psnr_pooled()}
    if split != "train":
        metrics["ssim"] = StructuralSimilarityIndexMeasure(data_range=1.0)
    return metrics


class FinolaAutoencoder(FinolaMethod):
    """An image as M vectors and matrices shared by all images: encode, roll out, decode.

    Args:
        channels: C of a vector, the number of wave equations.
        paths: M vectors, each rolled out by itself and summed; the latent has M C floats.
        map_size: side of the map in cells: image_size divided by 1, 2, 4, ...
        expansion: `finola`, or a control: `repeat` (the vector in every cell), `repeat_position` (and a learned table).
        eps: added to the variance in the normalisation.
        checkpoint: recompute the rollout in backward, path by path.
        start: [row, column] of the vectors in the map; None: its centre.
        pooling: `attentional`, or `linear`: all cells through one linear layer.
        **shared: the arguments of `FinolaMethod`; the seeds divide M C.

    Raises:
        ConfigError: arguments that do not go together.
    """

    def __init__(
        self,
        channels: int = FinolaOptions.channels,
        *,
        paths: int = FinolaOptions.paths,
        map_size: int = FinolaOptions.map_size,
        expansion: Expansion = FinolaOptions.expansion,
        eps: float = FinolaOptions.eps,
        checkpoint: bool = FinolaOptions.checkpoint,
        start: list[int] | None = FinolaOptions.start,  # type: ignore[assignment]
        pooling: Pooling = FinolaOptions.pooling,
        **shared: Any,
    ) -> None:
        super().__init__(channels=channels, **shared)
        options = replace(self.options, paths=paths, map_size=map_size, expansion=expansion, pooling=pooling)
        self.network = FinolaNetwork(replace(options, eps=eps, checkpoint=checkpoint, start=start))
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
        need(batch, type(self).__name__, "image")
        image = batch["image"]
        grown = self.network.grow(self.network.encode(image))
        if split == "train" and grown.requires_grad:
            grown.register_hook(self._keep_grad_norms)
        preds = (self.network.decoder(grown) + 1) / 2
        return {
            "loss": pixel_loss(self.loss, preds, image),
            "preds": preds.detach().float().clamp(0, 1),
            "target": image,
        }

    def configure_metrics(self, split: Split) -> dict[str, Metric]:
        """Both definitions of PSNR, and SSIM in evaluation; all on [0, 1]."""
        return reconstruction_metrics(split)

    def _keep_grad_norms(self, grad: Tensor) -> None:
        row, col = self.network.start or (side // 2 for side in self.network.map_size)
        corner = max(((r, c) for r in (0, -1) for c in (0, -1)), key=lambda rc: self._distance(rc, (row, col)))
        per_cell = grad.detach().float().norm(dim=1) / loss_factor(self.attached_trainer)
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
        drawn = {"reconstruction": reconstruction_grid(image.float().cpu().numpy(), preds.float().cpu().numpy(), title)}
        growth = self.network.growth
        if isinstance(growth, Finola):
            right, left, down, up = growth.directional().float().cpu()
            pairs = {"right / down": (right, down), "left / up": (left, up)}
            speeds = {name: wave_speeds(a, b, growth.normalize) for name, (a, b) in pairs.items()}
            drawn["wave_speeds"] = speed_spectrum({name: s.numpy() for name, s in speeds.items()}, title)
            # the PDE is stated for one path; the first stands for all
            first = latent[:, 0].float()
            grown = growth(first, self.network.map_size, self.network.start)
            apart = commutator(growth, first).mean().item()
            residual = pde_residual(growth, grown, self.network.start).nanmean(0).float().cpu().numpy()
            drawn["pde_residual"] = residual_map(residual, f"{title}; commutator at the start {apart:.3f}")
        return drawn

    def inference_forms(self) -> list[InferenceForm]:
        """For `framework export`: encoder and decoder."""
        return autoencoder_forms(self.network)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`reconstruction` uint8 (B, 3, H, W) and `latent` float32 (B, M, C) under the samples' `index`."""
        need(batch, f"{type(self).__name__}.predict_step", "image", "index")
        latent = self.encode(batch["image"])
        pixels = (255 * self.decode(latent)).round().to(torch.uint8)
        return {"index": batch["index"], "reconstruction": pixels, "latent": latent.float()}
