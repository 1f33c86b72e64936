"""What a rollout keeps for its backward pass goes through autograd's hands: freed, recomputed and moved as all else."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from framework.nn import Finola
from framework.nn.waves import finola
from framework.nn.waves.together import Together
from framework.step_memory import Peak

SIZE = (12, 12)
FORMS = ["separable", "wavefront", "together"]


@pytest.fixture(params=FORMS)
def scheme(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "together":
        monkeypatch.setattr(finola, "_parts", lambda plan, device: [Together(plan)])
        return "separable"
    return request.param


def made(scheme: str, normalize: bool) -> tuple[Finola, Tensor]:
    torch.manual_seed(0)
    return Finola(16, scheme, normalize=normalize), torch.randn(2, 3, 16, requires_grad=True)


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def held(layer: Finola, q: Tensor, recomputed: bool) -> tuple[list[int], list[Tensor]]:
    """Bytes beside the map after forward, and after backward with map and loss still there; the gradients."""
    with Peak() as peak:
        grown = checkpoint(layer, q, SIZE, use_reentrant=False) if recomputed else layer(q, SIZE)
        beside = [peak.now - size(grown)]
        loss = grown.square().sum()
        gradients = list(torch.autograd.grad(loss, [q, layer.weight]))
        beside.append(peak.now - size(grown) - size(loss) - sum(map(size, gradients)))
    return beside, gradients


@pytest.mark.parametrize("normalize", [True, False])
def test_it_is_freed_by_backward_and_not_kept_under_activation_checkpointing(scheme: str, normalize: bool) -> None:
    layer, q = made(scheme, normalize)
    (forward, backward), gradients = held(layer, q, recomputed=False)
    # the state of every cell that was stepped from, of three paths
    assert forward > 2 * size(layer(q, SIZE))
    assert backward < 0.1 * forward
    (forward_again, backward_again), recomputed = held(layer, q, recomputed=True)
    assert forward_again < 0.1 * forward
    assert backward_again < 0.1 * forward
    assert all(torch.equal(a, b) for a, b in zip(gradients, recomputed, strict=True))


@pytest.mark.parametrize("normalize", [True, False])
def test_hooks_on_saved_tensors_see_all_of_it(scheme: str, normalize: bool) -> None:
    layer, q = made(scheme, normalize)
    (kept, _), expected = held(layer, q, recomputed=False)
    seen = 0

    def away(tensor: Tensor) -> list:
        nonlocal seen
        seen += size(tensor)
        return tensor.tolist()

    with torch.autograd.graph.saved_tensors_hooks(away, torch.tensor):
        grown = layer(q, SIZE)
    assert seen > 0.9 * kept
    gradients = torch.autograd.grad(grown.square().sum(), [q, layer.weight])
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    with torch.autograd.graph.save_on_cpu():
        grown = layer(q, SIZE)
    gradients = torch.autograd.grad(grown.square().sum(), [q, layer.weight])
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
