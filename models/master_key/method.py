"""Master key filters: classifiers whose depthwise filters come from a bank of eight (arXiv 2509.11711, 2509.12746)."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from framework.batches import need
from framework.compat import micro_batch
from framework.deploy.form import InferenceForm
from framework.errors import ConfigError
from framework.figures import filter_panel
from framework.method import BaseMethod, Batch, Split
from framework.nn import (
    ScaleSpaceDepthwiseConv2d,
    approximate,
    depthwise_convolutions,
    load_filters,
    make_bank,
    match_filters,
)
from framework.protocols import HasClassNames
from models.master_key.inference import forms
from models.master_key.network import build_network, load_file_into

ADAMW = cast(OptimizerCallable, {"class_path": "torch.optim.AdamW", "init_args": {"lr": 8e-4, "weight_decay": 0.05}})


class MasterKeyClassifier(BaseMethod):
    """A timm network with depthwise convolutions, as it is or with its depthwise filters from a bank.

    The published protocol (arXiv 2509.12746; docs/master_key.md, "Training"): every depthwise filter is matched to the
    bank on a fine-tuned network (`match_checkpoint`), a x + b is written into the self-supervised one (`checkpoint`),
    the depthwise weights are frozen and the rest is fine-tuned.

    Args:
        model: timm name, e.g. `convnextv2_tiny`.
        num_classes: classes.
        pretrained: download timm's weights; a checkpoint of a run stores it as false, for it holds its own.
        checkpoint: a local file of weights, read at the start of a run; see `load_file_into`.
        key_mapping: how its names become timm's: `names`, `timm`, `torchvision/NAME` or a mapping of
            regular expressions.
        load_head: False starts with a new classifier.
        model_args: further arguments of timm's `create_model`, e.g. `{pad_type: same}` or `{drop_path_rate: 0.2}`.
        identity_modules: modules to replace by the identity.
        filters: `original`; a bank (`learned`, `A` to `D2`, `random`, `random-N`, `k-lines`, `sigma-network`,
            `sigma-layer`, `sigma-filter`); or `learned-scale`: the best operator of every filter with trainable
            sigma_x, sigma_y, a and b.
        filters_file: the learned filters, the authors' text file or an `.npz`; for `filters: learned`.
        match_checkpoint: weights of the network on which filters are matched; None: the network itself.
        start_sigma: with `learned-scale`, where sigmas start; None: at the matched scales; the published start is 1.5.
        freeze_filters: keep depthwise weights (or sigmas, a, b) fixed, and out of the optimizer.
        bank_seed: of `random` and `k-lines`.
        label_smoothing: of the cross-entropy.
        mixup: alpha of mixup in training; 0: none.
        cutmix: alpha of cutmix; 0: none. With both, each batch takes one of the two.
        layer_decay: factor on the learning rate from each layer to the one before it; 1: none.
        optimizer: one-dimensional parameters get no weight decay.
        **training: `lr_scheduler`, `lr_interval` and `memory` of BaseMethod.

    Raises:
        ConfigError: no depthwise convolution, an unknown bank, or values out of range.
        CheckpointError: weights that do not match.
    """

    decided_by_state = (
        "checkpoint",
        "key_mapping",
        "load_head",
        "filters",
        "filters_file",
        "match_checkpoint",
        "start_sigma",
        "bank_seed",
    )
    monitor = "val/top1"
    monitor_mode = "max"
    evaluates_untrained = True

    def __init__(
        self,
        model: str = "convnextv2_tiny",
        num_classes: int = 1000,
        pretrained: bool = False,
        checkpoint: str | None = None,
        key_mapping: str | dict[str, str] = "names",
        load_head: bool = True,
        model_args: dict[str, Any] | None = None,
        identity_modules: list[str] | None = None,
        filters: str = "original",
        filters_file: str | None = None,
        match_checkpoint: str | None = None,
        start_sigma: float | None = None,
        freeze_filters: bool = False,
        bank_seed: int = 0,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        layer_decay: float = 1.0,
        optimizer: OptimizerCallable = ADAMW,
        **training: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **training)
        if pretrained and checkpoint is not None:
            raise ConfigError("model.pretrained and model.checkpoint: give one of the two")
        if num_classes < 2:
            raise ConfigError(f"model.num_classes: expected at least 2, got {num_classes}")
        if min(mixup, cutmix) < 0 or not 0 <= label_smoothing < 1 or not 0 < layer_decay <= 1:
            raise ConfigError(
                f"model: expected mixup, cutmix >= 0, label_smoothing in [0, 1), layer_decay in (0, 1], got {mixup}, "
                f"{cutmix}, {label_smoothing}, {layer_decay}"
            )
        if filters == "original" and match_checkpoint is not None:
            raise ConfigError("model.match_checkpoint: only with a bank; with filters: original nothing is matched")
        self.num_classes = num_classes
        self.freeze_filters = freeze_filters
        self.label_smoothing, self.mixup, self.cutmix, self.layer_decay = label_smoothing, mixup, cutmix, layer_decay
        self.filters, self.filters_file, self.bank_seed = filters, filters_file, bank_seed
        self.start_sigma, self.match_checkpoint = start_sigma, match_checkpoint
        self.checkpoint, self.key_mapping, self.load_head = checkpoint, key_mapping, load_head
        self._options: dict[str, Any] = {"model_args": model_args, "identity_modules": identity_modules or []}
        self._build = partial(build_network, model, num_classes, **self._options)
        self.network = self._build(pretrained=pretrained)
        depthwise_convolutions(self.network)
        self._scale_space = filters == "learned-scale"
        if self._scale_space:
            replace_by_scale_space(self.network, start_sigma)
        if freeze_filters:
            for parameter in filter_parameters(self.network):
                parameter.requires_grad_(False)
        self.optimizer_factory = partial(with_scaled_rates, self.optimizer_factory)

    def initialise(self, data: LightningDataModule | None = None) -> None:
        """Loads `checkpoint`, matches the filters and writes the bank, once; a run does it when it starts.

        Raises:
            CheckpointError: weights that are missing or do not match.
            ConfigError: an unknown bank, or `learned` without `filters_file`.
        """
        # with scale-space layers the network has no plain kernels to load or to match
        plain = self._build() if self._scale_space else self.network
        if self.checkpoint is not None:
            load_file_into(plain, self.checkpoint, self.key_mapping, self.load_head)
        source = plain
        if self.match_checkpoint is not None:
            source = self._build()
            # its classes do not matter, so its classifier is left alone
            load_file_into(source, self.match_checkpoint, self.key_mapping, load_head=False)
        if self._scale_space:
            if self.checkpoint is not None:
                kernels = {f"{name}.weight" for name in depthwise_convolutions(plain)}
                rest = {key: value for key, value in plain.state_dict().items() if key not in kernels}
                self.network.load_state_dict(rest, strict=False)
            if self.checkpoint is not None or self.match_checkpoint is not None:
                match_scale_space(self.network, source, self.start_sigma)
        elif self.filters != "original":
            learned = None if self.filters_file is None else load_filters(self.filters_file)
            write_bank(plain, source, self.filters, learned, self.bank_seed)

    def adapt(self, data: LightningDataModule | None) -> None:
        """Checks the classes.

        Raises:
            ConfigError: the data has another number of classes.
        """
        names = data.class_names if isinstance(data, HasClassNames) else None
        if names and len(names) != self.num_classes:
            raise ConfigError(f"model.num_classes: the data has {len(names)} classes, got {self.num_classes}")

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float32, normalised as the network was trained -> (B, num_classes) float32 logits."""
        return self.network(image).float()

    def step(self, batch: Batch, split: Split) -> dict[str, Tensor]:
        """Cross-entropy with label smoothing; in training on mixed pictures where mixup or cutmix is on."""
        need(batch, type(self).__name__, "image", "label")
        image, label = batch["image"], batch["label"]
        smoothing = self.label_smoothing if split == "train" else 0.0
        if split == "train" and (self.mixup or self.cutmix):
            target = F.one_hot(label, self.num_classes).float()
            image, target = self._mix(image, target)
            logits = self(image)
            loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
        else:
            logits = self(image)
            loss = F.cross_entropy(logits, label, label_smoothing=smoothing)
        return {"loss": loss, "preds": logits, "target": label}

    def _mix(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        # drawn from (step, rank, batch of the step), so that a resumed run mixes alike and no global generator moves;
        # numpy draws the same from (step, rank) and (step, rank, 0)
        part = micro_batch(self.attached_trainer)
        rng = np.random.default_rng([self.global_step, self.global_rank, *([part] if part else [])])
        cut = self.cutmix > 0 and (self.mixup == 0 or rng.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = float(rng.beta(alpha, alpha))
        if cut:
            height, width = image.shape[-2:]
            h, w = (round(side * (1 - share) ** 0.5) for side in (height, width))
            y, x = int(rng.integers(height)), int(rng.integers(width))
            top, bottom = max(0, y - h // 2), min(height, y + h - h // 2)
            left, right = max(0, x - w // 2), min(width, x + w - w // 2)
            mixed = image.clone()
            mixed[..., top:bottom, left:right] = image.flip(0)[..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            mixed = share * image + (1 - share) * image.flip(0)
        return mixed, share * target + (1 - share) * target.flip(0)

    def save_memory(self) -> str | None:
        """timm's checkpointing of blocks; with batch normalisation that would count every batch twice."""
        normalised = any(isinstance(m, _BatchNorm) for m in self.network.modules())
        switch: Any = getattr(self.network, "set_grad_checkpointing", None)
        if normalised or switch is None:
            return None
        switch(True)
        return "blocks that run again in the backward pass"

    def configure_metrics(self, split: Split) -> dict[str, Metric]:
        """`top1` and, with more than five classes, `top5`, in [0, 1]; in training against the unmixed labels."""
        metrics: dict[str, Metric] = {"top1": MulticlassAccuracy(self.num_classes, average="micro")}
        if self.num_classes > 5:
            metrics["top5"] = MulticlassAccuracy(self.num_classes, top_k=5, average="micro")
        return metrics

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters by layer (with `layer_decay`) and by whether they decay: one-dimensional ones do not."""
        layers, count = self._layer_numbers()
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                continue
            plain = parameter.ndim <= 1 or name.endswith(("raw_sigma",))
            key = (layers.get(name, count), plain)
            if key not in groups:
                groups[key] = {"params": [], "lr_scale": self.layer_decay ** (count - key[0])}
                if plain:
                    groups[key]["weight_decay"] = 0.0
            groups[key]["params"].append(parameter)
        return [groups[key] for key in sorted(groups)]

    def _layer_numbers(self) -> tuple[dict[str, int], int]:
        if self.layer_decay == 1:
            return {}, 0
        from timm.models import group_parameters

        if not hasattr(self.network, "group_matcher"):
            raise ConfigError(
                f"model.layer_decay: timm numbers no layers of {type(self.network).__name__}; set it to 1"
            )
        layers = group_parameters(self.network, cast(Any, self.network).group_matcher(coarse=False), reverse=True)
        return layers, max(layers.values())

    def figures(self, batch: Batch) -> Mapping[str, Figure]:  # type: ignore[override]
        """The first filters of the first depthwise layer."""
        name, weight = next(iter(depthwise_kernels(self.network).items()))
        return {"depthwise_filters": filter_panel(weight[:32].float().cpu().numpy(), title=name)}

    def inference_forms(self) -> list[InferenceForm]:
        """For `framework export`: the network with plain depthwise convolutions."""
        names = (self.preprocessing or {}).get("class_names")
        return forms(copy.deepcopy(self.network), self, self.num_classes, names)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """`probabilities` float32 (B, num_classes) under the samples' `index`."""
        need(batch, f"{type(self).__name__}.predict_step", "image", "index")
        return {"index": batch["index"], "probabilities": self(batch["image"]).softmax(1)}


def with_scaled_rates(build: Any, groups: Any) -> torch.optim.Optimizer:
    """An optimizer whose groups' learning rates are multiplied by their `lr_scale`."""
    made = build(groups)
    for group in made.param_groups:
        group["lr"] *= group.pop("lr_scale", 1.0)
    return made


def write_bank(network: nn.Module, source: nn.Module, name: str, learned: Tensor | None = None, seed: int = 0) -> None:
    """Matches the depthwise filters of `source` to a bank and writes a x + b into `network`.

    Raises:
        ConfigError: an unknown bank, or no depthwise convolution.
    """
    weights = {layer: conv.weight.detach().flatten(0, 1) for layer, conv in depthwise_convolutions(source).items()}
    banks = make_bank(name, weights, learned, seed)
    targets = depthwise_convolutions(network)
    with torch.no_grad():
        for layer, filters in weights.items():
            match = match_filters(filters, banks[layer])
            targets[layer].weight.copy_(approximate(match, banks[layer]).unsqueeze(1))


def replace_by_scale_space(network: nn.Module, start_sigma: float | None = None) -> None:
    """Puts a ScaleSpaceDepthwiseConv2d in the place of every depthwise convolution, matched to its present kernels.

    Raises:
        ConfigError: no depthwise convolution, or one of a class whose padding is not known.
    """
    from timm.layers import Conv2dSame

    for name, conv in depthwise_convolutions(network).items():
        layer = ScaleSpaceDepthwiseConv2d.from_conv(conv, same_padding=isinstance(conv, Conv2dSame))
        if start_sigma is not None:
            layer.set_sigma(start_sigma)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer)


def match_scale_space(network: nn.Module, source: nn.Module, start_sigma: float | None = None) -> None:
    """Gives a network's scale-space layers the operators nearest to another network's depthwise kernels."""
    for name, conv in depthwise_convolutions(source).items():
        layer = cast(ScaleSpaceDepthwiseConv2d, network.get_submodule(name))
        layer.match(conv.weight)
        if start_sigma is not None:
            layer.set_sigma(start_sigma)


def filter_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that make the depthwise kernels: weights, or sigmas, a and b; biases are not among them."""
    scale_space = [m for m in network.modules() if isinstance(m, ScaleSpaceDepthwiseConv2d)]
    if scale_space:
        return [p for m in scale_space for p in cast(list[nn.Parameter], [m.raw_sigma, m.scale, m.offset])]
    return [cast(nn.Parameter, conv.weight) for conv in depthwise_convolutions(network).values()]


def depthwise_kernels(network: nn.Module) -> dict[str, Tensor]:
    """The present depthwise kernels by layer, (C, k, k), whichever layers make them."""
    scale_space = {n: m for n, m in network.named_modules() if isinstance(m, ScaleSpaceDepthwiseConv2d)}
    if scale_space:
        return {name: m.kernel().detach().flatten(0, 1) for name, m in scale_space.items()}
    return {name: conv.weight.detach().flatten(0, 1) for name, conv in depthwise_convolutions(network).items()}
