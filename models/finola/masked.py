"""Masked FINOLA: predict the rest of an image from one visible block (arXiv 2305.16319)."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import Metric

from framework.batches import need
from framework.deploy.form import InferenceForm
from framework.errors import ConfigError
from framework.figures import reconstruction_grid
from framework.method import Batch, Split
from framework.metrics import float_psnr
from framework.nn import Finola
from models.finola.decoder import Decoder
from models.finola.encoder import AttentionalPool
from models.finola.inference import features_form
from models.finola.method import FinolaMethod, pixel_loss
from models.finola.network import build_encoder, check_channels


def block_rollout(layer: Finola, visible: Tensor, corner: tuple[int, int]) -> Tensor:
    """Every visible cell predicts the three masked cells half a map away from it, without feedback in between.

    Along a row they are phi_x^h, along a column phi_y^h, on the diagonal the mean of both orders. Where the block does
    not lie in a corner, a cell whose step would leave the map goes the other way, so that every masked cell has exactly
    one source (our rule).

    Args:
        layer: with the matrices of the four directions.
        visible: (B, C, h, w) features of the block.
        corner: (row, column) of the block's first cell in the map, 0 to h and 0 to w.

    Returns:
        (B, C, 2 h, 2 w) float32: the visible features in their place, predictions everywhere else.

    Raises:
        ConfigError: a block that does not lie in the map.
    """
    height, width = visible.shape[2:]
    row, col = corner
    if not (0 <= row <= height and 0 <= col <= width):
        raise ConfigError(f"corner: expected (row, column) of at most ({height}, {width}), got {corner}")
    z = visible.movedim(1, -1)

    def across(cells: Tensor) -> Tensor:
        right, left = cells[:, :, : width - col], cells[:, :, width - col :]
        return torch.cat([layer.walk(right, "right", width), layer.walk(left, "left", width)], 2)

    def along(cells: Tensor) -> Tensor:
        down, up = cells[:, : height - row], cells[:, height - row :]
        return torch.cat([layer.walk(down, "down", height), layer.walk(up, "up", height)], 1)

    horizontal, vertical = across(z), along(z)
    diagonal = (along(horizontal) + across(vertical)) / 2
    # a cell and the three it predicts are equal modulo half the map
    tiles = [t.float().roll((row, col), (1, 2)).repeat(1, 2, 2, 1) for t in (z, horizontal, vertical, diagonal)]
    in_rows = torch.zeros(2 * height, 1, 1, dtype=torch.bool, device=z.device)
    in_cols = torch.zeros(1, 2 * width, 1, dtype=torch.bool, device=z.device)
    in_rows[row : row + height], in_cols[:, col : col + width] = True, True
    inside = torch.where(in_rows, torch.where(in_cols, tiles[0], tiles[1]), torch.where(in_cols, tiles[2], tiles[3]))
    return inside.movedim(-1, 1)


class MaskedFinola(FinolaMethod):
    """Pre-training: a block of half the image's side is seen, FINOLA grows the rest, the loss is on the masked pixels.

    The encoder gets the cropped block, never a masked full image, so that no global token and no statistic can leak.

    Args:
        mode: `element`: one vector of the block, placed at its centre and rolled out over the map; `block`: every
            visible cell predicts the three cells half a map away.
        positions: blocks in the four `corners`, or `all` cell positions.
        stride: input pixels per cell of the map; the images' side is a multiple of twice that.
        decoder_width: channels behind the decoder's first convolution.
        mask_seed: the block's position is drawn from (mask_seed, epoch, index); in evaluation from (mask_seed, index).
        **shared: the arguments of `FinolaMethod`; `scheme`, `seeds` and `compile` are for `element` only.

    Raises:
        ConfigError: arguments that do not go together.
    """

    def __init__(
        self,
        *,
        mode: Literal["element", "block"] = "element",
        positions: Literal["corners", "all"] = "corners",
        stride: int = 4,
        decoder_width: int = 128,
        mask_seed: int = 0,
        **shared: Any,
    ) -> None:
        super().__init__(stride=stride, decoder_width=decoder_width, **shared)
        options = self.options
        channels, image_size = options.channels, options.image_size
        if mode not in ("element", "block"):
            raise ConfigError(f"model.mode: expected element or block, got {mode!r}")
        if options.compile and mode == "block":
            raise ConfigError("model.compile: block-wise steps are few and long; leave it out, or set mode: element")
        check_channels(channels)
        if image_size < 1 or image_size % (2 * stride):
            raise ConfigError(
                f"model.image_size: expected a multiple of twice model.stride (2 x {stride}), got {image_size}: the "
                "visible block is half as wide as the image"
            )
        self.mode, self.positions, self.mask_seed = mode, positions, mask_seed
        self.image_size, self.stride = image_size, stride
        self.cells = image_size // stride
        self.encoder = build_encoder(options)
        features = cast(int, self.encoder.out_channels)
        self.to_latent: nn.Module = (
            AttentionalPool(features, 1, channels, options.seeds)
            if mode == "element"
            else nn.Conv2d(features, channels, 1)
        )
        self.growth = options.growth()
        self.decoder = Decoder(channels, self.cells, image_size, decoder_width)

    # ------------------------------------------------------------------ the method

    def forward(self, image: Tensor, corner: tuple[int, int]) -> Tensor:
        """Predicts a whole image from one block of it.

        Args:
            image: (B, 3, H, W) float32 in [0, 1]; only the block is looked at.
            corner: (row, column) of the block's first cell in the map.

        Returns:
            (B, 3, H, W), [0, 1] up to over- and undershoot.
        """
        half, (row, col) = self.cells // 2, corner
        y, x, side = row * self.stride, col * self.stride, self.image_size // 2
        latent = self.to_latent(self.encoder(2 * image[:, :, y : y + side, x : x + side] - 1))
        if self.mode == "element":
            grown = self.growth(latent, (self.cells, self.cells), (row + half // 2, col + half // 2))
        else:
            grown = block_rollout(self.growth, latent, corner)
        return (self.decoder(grown) + 1) / 2

    def features(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], whole images -> (B, D) means of the encoder's features: what a probe sees."""
        return self.encoder(2 * image - 1).mean((2, 3))

    def corners(self, index: Tensor, epoch: int) -> list[tuple[int, int]]:
        """The block's first cell for every sample, drawn from (mask_seed, epoch, index); index int64 (B,)."""
        half = self.cells // 2
        choice = [0, half] if self.positions == "corners" else list(range(half + 1))
        drawn = []
        for i in index.tolist():
            row, col = np.random.default_rng([self.mask_seed, epoch, i]).integers(len(choice), size=2)
            drawn.append((choice[row], choice[col]))
        return drawn

    def masked(self, corner: tuple[int, int], device: torch.device) -> Tensor:
        """(H, W) bool: the pixels outside the block."""
        mask = torch.ones(self.image_size, self.image_size, dtype=torch.bool, device=device)
        y, x, side = corner[0] * self.stride, corner[1] * self.stride, self.image_size // 2
        mask[y : y + side, x : x + side] = False
        return mask

    def predict_all(self, image: Tensor, corners: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Predictions (B, 3, H, W) and masks (B, H, W), samples with the same block together.

        Raises:
            ConfigError: images of another size.
        """
        if image.shape[1:] != (3, self.image_size, self.image_size):
            raise ConfigError(
                f"image: expected (B, 3, {self.image_size}, {self.image_size}), got {tuple(image.shape)}; set "
                "model.image_size and data.image_size to the same value, and convert grey or RGBA pictures to RGB"
            )
        groups: dict[tuple[int, int], list[int]] = {}
        for i, corner in enumerate(corners):
            groups.setdefault(corner, []).append(i)
        preds: list[Tensor] = [image] * len(corners)
        for corner, members in groups.items():
            # stacked from views: a list of indices would have to be copied to the device
            part = self(torch.stack([image[i] for i in members]), corner)
            for i, pred in zip(members, part, strict=True):
                preds[i] = pred
        return torch.stack(preds), torch.stack([self.masked(corner, image.device) for corner in corners])

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Draws the blocks while the indices are still on the host."""
        need(batch, type(self).__name__, "image", "index")
        epoch = self.current_epoch if self.trainer.training else 0
        return {**batch, "corners": self.corners(batch["index"], epoch)}  # type: ignore[dict-item]

    def step(self, batch: Batch, split: Split) -> dict[str, Tensor]:
        """The loss on masked pixels; `preds` and `target` hold those pixels only, (B, 3 x masked pixels)."""
        epoch = self.current_epoch if split == "train" and self.attached_trainer is not None else 0
        image = batch["image"]
        corners: Any = batch["corners"] if "corners" in batch else self.corners(batch["index"], epoch)
        preds, masked = self.predict_all(image, corners)
        # as many in every image, in reading order
        pixels = 3 * self.image_size**2 // 4
        chosen = (~masked).flatten(1).to(torch.uint8).argsort(dim=1, stable=True)[:, None, :pixels].expand(-1, 3, -1)
        preds, target = (t.flatten(2).gather(2, chosen).flatten(1) for t in (preds, image))
        return {
            "loss": pixel_loss(self.loss, preds, target),
            "preds": preds.detach().float().clamp(0, 1),
            "target": target,
        }

    def save_memory(self) -> str | None:
        """Of `element` the rollout again in the backward pass; block-wise steps are not recomputed."""
        return super().save_memory() if self.mode == "element" else None

    def configure_metrics(self, split: Split) -> dict[str, Metric]:
        """`psnr`: mean over images of the PSNR of their masked pixels in [0, 1]."""
        return {"psnr": float_psnr(dims=2)}

    def figures(self, batch: Batch) -> Mapping[str, Figure]:  # type: ignore[override]
        """Images, the predictions with the visible block as it was, and the error."""
        image = batch["image"].to(self.device)
        preds, masked = self.predict_all(image, self.corners(batch["index"], 0))
        shown = torch.where(masked[:, None], preds.float().clamp(0, 1), image)
        panel = reconstruction_grid(
            image.float().cpu().numpy(),
            shown.float().cpu().numpy(),
            f"masked FINOLA ({self.mode}-wise); the visible block is copied",
        )
        return {"masked": panel}

    def inference_forms(self) -> list[InferenceForm]:
        """For `framework export`: the encoder."""
        return [features_form(self.encoder, self.stride, self.features)]

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`reconstruction` uint8 (B, 3, H, W) from the block, and `features` float32 (B, D) of the whole image."""
        preds, _ = self.predict_all(batch["image"], self.corners(batch["index"], 0))
        pixels = (255 * preds.float().clamp(0, 1)).round().to(torch.uint8)
        features = cast(Tensor, self.features(batch["image"]))
        return {"index": batch["index"], "reconstruction": pixels, "features": features.float()}
