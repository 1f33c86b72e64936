"""Every loss against its formula written out, sums, ignored pixels, autocast, gradients, and balanced weights."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch import Trainer

from datamodules import SegmentationDataModule, SquaresDataModule
from framework.errors import ConfigError
from models import KMUNet, KOriginsSegmentation
from models.losses import LOSSES, balanced_weights, first_weights, segmentation_loss, terms

WEIGHTS = torch.tensor([0.3, 1.0, 1.7])


def sample(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(3, (2, 4, 5), generator=generator)


def written_out(name: str, logits: np.ndarray, target: np.ndarray, weights: np.ndarray, ignored: int | None) -> float:
    """The formulas of the papers, pixel by pixel."""
    total, count = 0.0, 0
    overlaps = np.zeros((len(logits), logits.shape[1], 2))
    for b, y, x in itertools.product(*map(range, target.shape)):
        if target[b, y, x] == ignored:
            continue
        e = np.exp(logits[b, :, y, x] - logits[b, :, y, x].max())
        p, t = e / e.sum(), int(target[b, y, x])
        weight = weights[t] if name.startswith("weighted") else 1
        total += weight * -np.log(p[t]) * ((1 - p[t]) ** 2 if name.endswith("focal") else 1)
        count += 1
        for c in range(len(p)):
            overlaps[b, c] += p[c] * (t == c), p[c] + (t == c)
    if name == "dice":
        return float(1 - ((2 * overlaps[..., 0] + 1) / (overlaps[..., 1] + 1)).mean())
    return total / max(count, 1)


@pytest.mark.parametrize("ignored", [None, 1, 255])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_its_formula(name: str, ignored: int | None) -> None:
    logits, target = sample(torch.float64)
    if ignored == 255:
        target[0, :2] = 255
    expected = written_out(name, logits.numpy(), target.numpy(), WEIGHTS.double().numpy(), ignored)
    got = segmentation_loss(logits, target, name, WEIGHTS, ignored)
    assert float(got) == pytest.approx(expected, abs=1e-7)  # the weights are float32
    assert float(segmentation_loss(logits.float(), target, name, WEIGHTS, ignored)) == pytest.approx(expected, abs=1e-6)


def test_sums_are_sums_however_they_are_written() -> None:
    logits, target = sample()
    for names in itertools.chain(itertools.combinations(LOSSES, 2), [tuple(LOSSES)]):
        parts = sum(float(segmentation_loss(logits, target, name, WEIGHTS)) for name in names)
        for kind in ("+".join(names), " + ".join(names), list(names)):
            assert float(segmentation_loss(logits, target, kind, WEIGHTS)) == pytest.approx(parts, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_formula_and_ignored_pixels_have_none(name: str) -> None:
    logits, target = sample(torch.float64)
    target[0, 0] = 255
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segmentation_loss(x, target, name, WEIGHTS.double(), 255), logits)
    segmentation_loss(logits, target, name, WEIGHTS, 255).backward()
    assert logits.grad is not None
    assert not logits.grad[0, :, 0].any()
    assert logits.grad[0, :, 1].all()
    nothing = segmentation_loss(logits, torch.full_like(target, 255), name, WEIGHTS, 255)
    assert float(nothing) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_and_large_logits_change_nothing(name: str) -> None:
    logits, target = sample(torch.bfloat16)
    plain = segmentation_loss(logits.float(), target, name, WEIGHTS)
    with torch.autocast("cpu", torch.bfloat16):
        cast = segmentation_loss(logits, target, name, WEIGHTS)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)
    huge = (1e4 * logits.float()).requires_grad_()
    segmentation_loss(huge, target, name, WEIGHTS).backward()
    assert huge.grad is not None
    assert torch.isfinite(huge.grad).all()


@pytest.mark.parametrize("kind", ["", "dicee", "dice+dice", [], ["dice", "x"], "dice+"])
def test_a_loss_that_is_none_is_named(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.loss: expected some of cross_entropy, .* each once"):
        terms(kind)


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("dice", [1.0, 1.0]), ("dice", "balanced"), ("weighted_focal", None), ("weighted_focal", [1.0]),
     ("weighted_focal+dice", [1.0, -1.0]), ("weighted_focal", "balance"), ("weighted_focal", [0.0, 0.0])],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(kind: str, weights: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.class_weights: expected 2 weights, or balanced, with a weighted"):
        first_weights(kind, weights, 2)
    assert first_weights("weighted_focal", [1.0, 3.0], 2).tolist() == [0.5, 1.5]


# ---------------------------------------------------------------------- balanced


def masks(root: Path) -> np.ndarray:
    """Ten pictures with masks of values 0, 7, 9 (rare) and 255 (without a label); (10, 12, 14)."""
    rng = np.random.default_rng(0)
    values = rng.choice([0, 7, 9, 255], p=[0.7, 0.2, 0.05, 0.05], size=(10, 12, 14)).astype(np.uint8)
    for part in ("images", "masks"):
        (root / part).mkdir()
    for i, mask in enumerate(values):
        tifffile.imwrite(root / "images" / f"{i}.tif", rng.integers(0, 99, mask.shape, dtype=np.uint8))
        tifffile.imwrite(root / "masks" / f"{i}.tif", mask)
    return values


def test_balanced_weights_are_counted_in_the_training_masks(tmp_path: Path, capsys: Any) -> None:
    values = masks(tmp_path)
    data = SegmentationDataModule(str(tmp_path), labels=[0, 7, 9, 8], ignore_label=255, batch_size=2)
    counts = [(values[:6] == v).sum() for v in (0, 7, 9, 8)]
    assert data.class_counts().tolist() == counts
    inverse = 1 / np.array(counts[:3])
    expected = [*(inverse / inverse.mean()), 0]
    assert balanced_weights(data, 4).tolist() == pytest.approx(expected, rel=1e-6)
    assert "class 3 is in no training mask; its weight is 0" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"model\.num_classes: .* 3 classes .* got the counts"):
        balanced_weights(data, 3)
    with pytest.raises(ConfigError, match="class_weights: balanced needs a data module .* got NoneType"):
        balanced_weights(None, 3)


def test_balanced_weights_from_any_training_dataset() -> None:
    data = SquaresDataModule(images=6, side=32, test_images=2)
    data.setup("fit")
    dataset: Any = data.datasets["train"]
    counts = np.bincount(np.concatenate([dataset[i]["mask"].numpy().ravel() for i in range(len(dataset))]))
    got = balanced_weights(data, len(counts)).numpy()
    assert got.mean() == pytest.approx(1)
    assert got * counts == pytest.approx(np.full(len(counts), (got * counts).mean()), rel=1e-5)


@pytest.mark.parametrize("method", [KMUNet, KOriginsSegmentation])
def test_both_methods_train_with_balanced_weights_and_keep_them(tmp_path: Path, method: Any) -> None:
    (tmp_path / "set").mkdir()
    masks(tmp_path / "set")
    data = SegmentationDataModule(
        str(tmp_path / "set"), labels=[0, 7, 9], ignore_label=255, batch_size=2, normalize="none"
    )
    small: Any = {"width": 2, "stages": 1} if method is KMUNet else {"width": 2, "rfl": 8}
    quiet: Any = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    model = method(num_classes=3, ignore_index=255, loss=["weighted_focal", "dice"], class_weights="balanced", **small)
    trainer = Trainer(**quiet, max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False)
    trainer.fit(model, data)
    assert torch.equal(model.class_weights, balanced_weights(data, 3))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = method.load_from_checkpoint(tmp_path / "x.ckpt")
    assert torch.equal(loaded.class_weights, model.class_weights)
    assert loaded.loss == ["weighted_focal", "dice"]
    plain = method(num_classes=3, loss="weighted_cross_entropy", class_weights=[1.0, 2.0, 3.0], **small)
    assert "class_weights" not in plain.state_dict()


@pytest.mark.parametrize("method", [KMUNet, KOriginsSegmentation])
@pytest.mark.parametrize("assign", [False, True], ids=["to_empty", "assign"])
def test_given_weights_are_there_after_a_start_without_values(method: Any, assign: bool) -> None:
    """A checkpoint does not hold them."""
    small: Any = {"width": 2, "stages": 1} if method is KMUNet else {"width": 2, "rfl": 8}
    weighted: Any = {"num_classes": 3, "loss": "weighted_cross_entropy", "class_weights": [1.0, 2.0, 3.0], **small}
    whole = method(**weighted)
    with torch.device("meta"):
        empty = method(**weighted)
    if not assign:
        empty.to_empty(device="cpu")
        empty.class_weights.fill_(77)
    empty.load_state_dict(whole.state_dict(), assign=assign)
    assert empty.class_weights.tolist() == [0.5, 1.0, 1.5]
    assert not any(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
