"""What FINOLA's two methods share: the network's options, the loss, the optimizer's groups."""

from typing import Any, Literal, cast, get_args

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.method import BaseMethod
from framework.nn import Finola
from framework.nn.waves.options import Compile
from framework.nn.waves.steps import Scheme
from models.finola.options import FinolaOptions

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


class FinolaMethod(BaseMethod):
    """An encoder, a map that FINOLA grows and a decoder; subclasses say what is to be predicted from what.

    Args:
        channels: C of the map.
        image_size: side of the images in pixels; as `data.image_size`.
        encoder: `mobile_former`, `cnn` or a timm model's name.
        encoder_width: channels after the first convolution of the first two.
        encoder_depth: their blocks per halving.
        stride: input pixels per feature cell.
        seeds: of the attentional pooling; they divide the latent's number of floats.
        scheme: `separable`, `row_first`, `column_first` or `wavefront`.
        matrices: 4, 2 (A- = -A+) or 1 (B = A as well).
        normalize: False leaves the normalisation out (a control).
        init_std: s, the matrices start from N(0, s^2 / C).
        decoder_width: channels behind the decoder's first convolution.
        pretrained: timm's weights for a timm encoder.
        compile: `regional`: FINOLA's repeated step compiled, and nothing else.
        loss: `mse`, `l1` or `l1+mse`, on pixels in [-1, 1].
        matrix_lr: learning rate of FINOLA's matrices; None: the optimizer's. Above C = 128 take about 64 / C of it.
        optimizer: with weight decay on convolutions and linear layers only.
        **training: `lr_scheduler`, `lr_interval` and `memory` of BaseMethod.

    Attributes:
        options: all that decides the network, as far as it was given.

    Raises:
        ConfigError: arguments that do not go together.
    """

    decided_by_state = ("init_std",)
    monitor = "val/psnr"
    monitor_mode = "max"

    def __init__(
        self,
        *,
        channels: int = FinolaOptions.channels,
        image_size: int = FinolaOptions.image_size,
        encoder: str = FinolaOptions.encoder,
        encoder_width: int = FinolaOptions.encoder_width,
        encoder_depth: int = FinolaOptions.encoder_depth,
        stride: int = FinolaOptions.stride,
        seeds: int = FinolaOptions.seeds,
        scheme: Scheme = FinolaOptions.scheme,
        matrices: int = FinolaOptions.matrices,
        normalize: bool = FinolaOptions.normalize,
        init_std: float = FinolaOptions.init_std,
        decoder_width: int = FinolaOptions.decoder_width,
        pretrained: bool = FinolaOptions.pretrained,
        compile: Compile | None = FinolaOptions.compile,
        loss: Loss = "mse",
        matrix_lr: float | None = None,
        optimizer: OptimizerCallable = ADAMW,
        **training: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **training)
        if loss not in get_args(Loss):
            raise ConfigError(f"model.loss: expected one of {', '.join(get_args(Loss))}, got {loss!r}")
        if matrix_lr is not None and matrix_lr <= 0:
            raise ConfigError(f"model.matrix_lr: expected a positive learning rate or null, got {matrix_lr}")
        self.loss: Loss = loss
        self.matrix_lr = matrix_lr
        self.options = FinolaOptions(
            channels=channels,
            image_size=image_size,
            encoder=encoder,
            encoder_width=encoder_width,
            encoder_depth=encoder_depth,
            stride=stride,
            seeds=seeds,
            scheme=scheme,
            matrices=matrices,
            normalize=normalize,
            init_std=init_std,
            decoder_width=decoder_width,
            pretrained=pretrained,
            compile=compile,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weight decay on convolutions and linear layers, none on FINOLA's matrices, norms, biases and seeds."""
        return parameter_groups(self, self.matrix_lr)

    def save_memory(self) -> str | None:
        """`checkpoint`: the rollout again in the backward pass, path by path."""
        rollouts = [m for m in self.modules() if isinstance(m, Finola)]
        if not rollouts:
            return None
        for rollout in rollouts:
            rollout.checkpoint = True
        return "model.checkpoint: true"
