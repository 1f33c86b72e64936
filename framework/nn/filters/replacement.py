"""Evaluating a network with other weights, and putting back what was there."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from framework.errors import ConfigError

Recalibration = Literal["affine", "statistics"]
Change = tuple[Tensor, Tensor]
_BatchNorm = nn.modules.batchnorm._BatchNorm


@contextmanager
def swapped(changes: Iterable[Change]) -> Iterator[None]:
    """Writes (target, value) pairs in place, and bitwise the old values back whatever happens inside.

    Targets are parameters or buffers; values of other dtypes and devices are converted.
    """
    changes = list(changes)
    saved = [(target, target.detach().clone()) for target, _ in changes]
    try:
        with torch.no_grad():
            for target, value in changes:
                target.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for target, value in saved:
                target.copy_(value)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode comes back."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


# ------------------------------------------------------------------------------------------------- recalibration


@dataclass
class ReferenceStatistics:
    """Per-channel mean and standard deviation of a network's pre-activations on the calibration images.

    Attributes:
        layers: in the order of execution, from the first depthwise convolution on: batch norms, or where a network has
            none, the depthwise convolutions.
        moments: mean and standard deviation of each, (C,) float32, of the batch norm's (convolution's) output.
    """

    layers: list[nn.Module] = field(default_factory=list)
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def reference_statistics(
    forward: Callable[[Tensor], Any], network: nn.Module, convolutions: Iterable[nn.Conv2d], images: Tensor
) -> ReferenceStatistics:
    """One forward pass of the untouched network.

    Args:
        forward: of the images; usually the network itself.
        network: whose batch norms are looked at.
        convolutions: its depthwise convolutions.
        images: (B, C, H, W) calibration images.

    Raises:
        ConfigError: neither batch norms nor convolutions with a bias behind the first depthwise convolution.
    """
    replaced = set(convolutions)
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    started: list[bool] = []
    found = ReferenceStatistics()

    def note_convolution(module: nn.Module, inputs: Any, output: Tensor) -> None:
        started.append(True)
        if not norms:
            found.layers.append(module)
            found.moments.append(_moments(output))

    def note_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if started:
            found.layers.append(module)
            found.moments.append(_through_norm(module, *_moments(inputs[0])))

    with ExitStack() as stack, evaluating(network):
        for conv in replaced:
            stack.callback(conv.register_forward_hook(note_convolution).remove)
        for norm in norms:
            stack.callback(norm.register_forward_pre_hook(note_norm).remove)
        forward(images)
    if not found.layers or any(getattr(layer, "bias", None) is None for layer in found.layers):
        raise ConfigError(
            f"recalibrate: {type(network).__name__} has no affine batch norm behind its depthwise convolutions, and "
            "these have no bias, so there is nothing to recalibrate with"
        )
    return found


def recalibrated(
    forward: Callable[[Tensor], Any],
    network: nn.Module,
    changes: list[Change],
    reference: ReferenceStatistics,
    images: Tensor,
    kind: Recalibration = "affine",
) -> list[Change]:
    """The changes, and those that make the changed network's pre-activations look like the original's; no gradients.

    One forward pass, in the order of execution, so that every layer is corrected on corrected input. `affine` rescales
    each channel of every batch norm (or of the depthwise convolution, where there is none) so that mean and standard
    deviation over the images equal the reference's. `statistics` sets the running statistics of the batch norms to
    those of their present input, as training would; it needs a network whose batch norms are not folded.

    Returns:
        the pairs to hand to `swapped`; the network itself is unchanged.

    Raises:
        ConfigError: `statistics` without batch norms.
    """
    if kind == "statistics" and not all(isinstance(layer, _BatchNorm) for layer in reference.layers):
        raise ConfigError("recalibrate: 'statistics' needs batch norms; 'affine' works without")
    moments = dict(zip(reference.layers, reference.moments, strict=True))
    touched: list[Tensor] = []
    for layer in reference.layers:
        names = ("running_mean", "running_var") if kind == "statistics" else ("weight", "bias")
        touched += [getattr(layer, name) for name in names]

    def correct_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean, std = _moments(inputs[0])
        if kind == "statistics":
            module.running_mean.copy_(mean)  # type: ignore[operator, union-attr]
            module.running_var.copy_(std.square())  # type: ignore[operator, union-attr]
        else:
            _rescale(module, *_through_norm(module, mean, std), *moments[module])

    def correct_convolution(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        mean, std = _moments(output)
        ratio, shift = _rescale(module, mean, std, *moments[module])
        return (output * ratio.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(output.dtype)

    replaced = {id(target) for target, _ in changes}
    saved = [(t, t.detach().clone()) for t in touched if id(t) not in replaced]
    with swapped([*changes, *saved]), evaluating(network), ExitStack() as stack:
        for layer in reference.layers:
            if isinstance(layer, _BatchNorm):
                stack.callback(layer.register_forward_pre_hook(correct_norm).remove)
            else:
                stack.callback(layer.register_forward_hook(correct_convolution).remove)
        forward(images)
        # a recalibrated depthwise weight must win over the replaced one
        known = {id(t) for t in touched}
        kept = [(target, value) for target, value in changes if id(target) not in known]
        return kept + [(t, t.detach().clone()) for t in touched]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    axes = [0, *range(2, x.ndim)]
    var, mean = torch.var_mean(x.float(), dim=axes, correction=0)
    return mean, var.sqrt()


def _through_norm(norm: Any, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return (mean - norm.running_mean) * gain + norm.bias, std * gain.abs()


def _rescale(module: Any, mean: Tensor, std: Tensor, wanted: Tensor, wanted_std: Tensor) -> tuple[Tensor, Tensor]:
    # a channel that is constant on the images keeps its gain and only gets the right mean
    ratio = torch.where(std > 1e-6, wanted_std / std.clamp_min(1e-6), 1.0)
    module.weight.mul_(ratio.view(-1, *[1] * (module.weight.ndim - 1)))
    shift = wanted - mean * ratio
    module.bias.mul_(ratio).add_(shift)
    return ratio, shift


# ------------------------------------------------------------------------------------------------- shared beginning


class SharedPrefix:
    """Remembers what a network computes before its first depthwise convolution, which every bank shares.

    In a recording pass the outputs of the largest parts without a depthwise convolution that run before the first one
    are kept; in a replaying pass they are returned instead of computed, so that the result is bitwise the same.

    Args:
        network: to be watched.
        convolutions: the modules that change.
    """

    def __init__(self, network: nn.Module, convolutions: Iterable[nn.Module]) -> None:
        self._changing = set(convolutions)
        self._parts = [part for child in network.children() for part in self._whole_parts(child)]
        self._outputs: dict[nn.Module, Tensor] = {}

    def _whole_parts(self, module: nn.Module) -> list[nn.Module]:
        if module in self._changing:
            return []
        if not any(m in self._changing for m in module.modules()):
            return [module]
        return [part for child in module.children() for part in self._whole_parts(child)]

    @contextmanager
    def record(self) -> Iterator[None]:
        """The one forward pass inside is watched."""
        self._outputs = {}
        started: list[bool] = []
        calls: dict[nn.Module, int] = {}

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            calls[module] = calls.get(module, 0) + 1
            if not started and isinstance(output, Tensor) and calls[module] == 1:
                self._outputs[module] = output.clone()
            else:
                self._outputs.pop(module, None)

        with ExitStack() as stack:
            for conv in self._changing:
                stack.callback(conv.register_forward_pre_hook(lambda m, i: started.append(True)).remove)
            for part in self._parts:
                stack.callback(part.register_forward_hook(keep).remove)
            yield

    @contextmanager
    def replay(self) -> Iterator[None]:
        """The passes inside must be over the recorded batch."""
        with ExitStack() as stack:
            for module, output in self._outputs.items():
                if "forward" in vars(module):  # somebody else's replacement; the part is computed again
                    continue
                module.forward = lambda *_, kept=output, **__: kept.clone()  # type: ignore[method-assign]
                stack.callback(delattr, module, "forward")
            yield
