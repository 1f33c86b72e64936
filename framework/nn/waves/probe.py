"""A linear probe: how far a linear classifier gets on frozen features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.errors import DataError


def linear_probe(
    features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor, l2: float = 1e-3, steps: int = 100
) -> float:
    """Accuracy of multinomial logistic regression, fitted by L-BFGS on standardised features.

    It fits inside `torch.no_grad` and `torch.inference_mode` too, where Trainers test.

    Args:
        features: (N, D) float32, for fitting, N at least 2.
        labels: (N,) int64 classes from 0.
        test_features: (K, D) float32.
        test_labels: (K,) int64.
        l2: weight of half the squared norm of the classifier's matrix.
        steps: L-BFGS iterations at most.

    Returns:
        share of the test features classified rightly, in [0, 1].

    Raises:
        DataError: shapes that do not belong together, too few rows, or features that are not finite.
    """
    if features.dim() != 2 or len(features) != len(labels) or test_features.shape[1:] != features.shape[1:]:
        raise DataError(
            f"linear_probe: expected features (N, D) with labels (N,), got {tuple(features.shape)} with "
            f"{tuple(labels.shape)}, and test features {tuple(test_features.shape)}"
        )
    if len(features) < 2 or len(test_features) < 1:
        raise DataError(
            f"linear_probe: expected at least 2 features for fitting, whose spread can be measured, and 1 for testing, "
            f"got {len(features)} and {len(test_features)}"
        )
    if not (features.isfinite().all() and test_features.isfinite().all()):
        raise DataError("linear_probe: the features hold NaN or infinite values")
    with torch.inference_mode(False), torch.enable_grad():
        # autograd takes no tensor that was made in inference mode, but a copy of it
        own = [t.detach().clone() for t in (features, labels, test_features, test_labels)]
        return _fitted(own[0], own[1], own[2], own[3], l2, steps)


def _fitted(
    features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor, l2: float, steps: int
) -> float:
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    features, test_features = (features - mean) / std, (test_features - mean) / std
    classes = int(max(labels.max(), test_labels.max())) + 1
    weight = features.new_zeros(classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        return ((test_features @ weight.T + bias).argmax(1) == test_labels).float().mean().item()
