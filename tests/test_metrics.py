"""Metrics against the formulas written out, against torchmetrics, and the same in every segmenter."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex
from torchmetrics.image import PeakSignalNoiseRatio

import framework.psnr
from framework.errors import ConfigError, DataError
from framework.method import BaseMethod
from framework.metrics import (
    BatchForegroundIoU,
    ClassDice,
    ClassIoU,
    ForegroundDice,
    ForegroundIoU,
    ImagePSNR,
    InstanceFigure,
    SampleMean,
    float_psnr,
    float_psnr_pooled,
    overlap_metrics,
    segmentation,
    squared_error_8bit,
)
from models import KMUNet, KOriginsSegmentation

IGNORED = 255


def of_class(preds: np.ndarray, target: np.ndarray, c: int) -> tuple[float, float]:
    """IoU and Dice of one class, pixel sets written out; NaN for a class that is nowhere."""
    said, true = preds == c, target == c
    both, either = np.count_nonzero(said & true), np.count_nonzero(said | true)
    if either == 0:
        return float("nan"), float("nan")
    return both / either, 2 * both / (np.count_nonzero(said) + np.count_nonzero(true))


def reference(preds: np.ndarray, target: np.ndarray, classes: int, ignored: int | None = None) -> dict[str, float]:
    """Every figure of maps, without a confusion matrix."""
    kept = np.ones(target.shape, bool) if ignored is None else target != ignored
    values = np.array([of_class(preds[kept], target[kept], c) for c in range(classes)])
    present = values[1:][~np.isnan(values[1:, 0])]
    iou, dice = present.mean(0) if len(present) else (1.0, 1.0)
    figures = {"iou": iou, "dice": dice, "accuracy": (preds == target)[kept].mean()}
    return figures | {f"{n}_{c}": values[c, i] for i, n in enumerate(("iou", "dice")) for c in range(classes)}


def assert_equal(figures: dict[str, torch.Tensor], expected: dict[str, float]) -> None:
    for name, value in figures.items():
        np.testing.assert_allclose(float(value), expected[name], rtol=1e-6, err_msg=name)


def maps(seed: int, classes: int, batches: int, absent: int) -> tuple[np.ndarray, np.ndarray]:
    """(batches, 3, 5, 5) predictions and truth; the last `absent` classes occur nowhere, some pixels have no label."""
    rng = np.random.default_rng(seed)
    preds, target = rng.integers(0, max(1, classes - absent), (2, batches, 3, 5, 5))
    return preds, np.where(rng.random(target.shape) < 0.2, IGNORED, target)


# ---------------------------------------------------------------------- segmentation


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 5), batches=st.integers(1, 4), absent=st.integers(0, 5))
@example(seed=0, classes=3, batches=2, absent=3)
def test_every_figure_is_the_written_out_formula(seed, classes, batches, absent) -> None:
    preds, target = maps(seed, classes, batches, absent)
    metrics, per_batch = overlap_metrics(classes, IGNORED, by_class=True), BatchForegroundIoU(classes, IGNORED)
    for p, t in zip(preds, target, strict=True):
        metrics.update(torch.from_numpy(p), torch.from_numpy(t))
        per_batch.update(torch.from_numpy(p), torch.from_numpy(t))
    figures = metrics.compute()
    assert set(figures) == set(reference(preds, target, classes, IGNORED)) - {"accuracy"}
    assert_equal(figures, reference(preds, target, classes, IGNORED))
    foreground = [i for i in range(batches) if np.any(((preds[i] > 0) | (target[i] > 0)) & (target[i] != IGNORED))]
    each = [reference(preds[i], target[i], classes, IGNORED)["iou"] for i in foreground]
    np.testing.assert_allclose(float(per_batch.compute()), np.mean(each) if each else 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(ClassDice, MulticlassF1Score), (ClassIoU, MulticlassJaccardIndex)], ids=["dice", "iou"]
)
def test_where_every_class_occurs_they_are_torchmetrics_by_class(ours, theirs) -> None:
    generator = torch.Generator().manual_seed(0)
    preds, target = (torch.randint(0, 4, (6, 8, 8), generator=generator) for _ in range(2))
    expected = theirs(4, average="none")(preds, target)
    for c in range(4):
        metric = ours(4, c)
        metric.update(preds[:1], target[:1])
        metric.update(preds[1:], target[1:])
        assert float(metric.compute()) == pytest.approx(float(expected[c]), rel=1e-6)
    mean = (ForegroundIoU if ours is ClassIoU else ForegroundDice)(4)
    mean.update(preds, target)
    assert float(mean.compute()) == pytest.approx(float(expected[1:].mean()), rel=1e-6)


def test_background_errors_count() -> None:
    # one false foreground pixel on background halves the IoU: ignoring class 0 in torchmetrics would miss it
    metric = ForegroundIoU(2)
    metric.update(torch.tensor([[[1, 1]]]), torch.tensor([[[1, 0]]]))
    assert float(metric.compute()) == 0.5


def test_an_ignored_class_has_no_figure() -> None:
    metrics = overlap_metrics(3, ignore_index=2, by_class=True)
    metrics.update(torch.tensor([[[1, 2, 2]]]), torch.tensor([[[1, 2, 1]]]))
    figures = metrics.compute()
    assert figures["iou"] == figures["iou_1"] == 0.5
    assert figures["iou_2"].isnan()


@pytest.mark.parametrize("make", [lambda: ForegroundIoU(1), lambda: ClassDice(3, 3), lambda: ClassIoU(3, -1)])
def test_classes_that_cannot_be_are_refused(make) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make()


# ---------------------------------------------------------------------- every segmenter


class Recited(torch.nn.Module):
    """A network that says what is in the image's first channel."""

    in_channels = stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Conv2d(1, 1, 1)  # its dtype is the network's

    def live_parameters(self) -> int:
        return 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(image[:, 0].long(), 4).movedim(-1, 1).float() * 9


def recite(method: BaseMethod) -> BaseMethod:
    method.network = Recited()
    method.anchor = torch.nn.Parameter(torch.zeros(()))  # the optimizer wants something
    return method


SEGMENTERS = {
    "korigins": lambda **kwargs: recite(KOriginsSegmentation(num_classes=4, width=1, origins="none", **kwargs)),
    "kmunet": lambda **kwargs: recite(KMUNet(num_classes=4, width=1, stages=1, **kwargs)),
}


def logged_by(method: BaseMethod, preds: np.ndarray, target: np.ndarray, folder, **trainer) -> dict[str, float]:
    samples = [
        {"image": torch.from_numpy(p)[None].float(), "mask": torch.from_numpy(t)}
        for p, t in zip(preds.reshape(-1, 5, 5), target.reshape(-1, 5, 5), strict=True)
    ]
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    runner = Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **trainer)
    return runner.test(method, DataLoader(samples, batch_size=2), verbose=False)[0]


@pytest.mark.parametrize("absent", [0, 1, 2, 4], ids=lambda n: f"{n} absent")
@pytest.mark.parametrize("ignored", [None, IGNORED], ids=["all labelled", "some unlabelled"])
def test_the_same_maps_give_every_segmenter_the_same_figures(tmp_path, absent, ignored) -> None:
    preds, target = maps(7, 4, 2, absent)
    if ignored is None:
        target = np.where(target == IGNORED, preds, target)
    expected = {f"test/{name}": value for name, value in reference(preds, target, 4, ignored).items()}
    logged = {name: logged_by(make(ignore_index=ignored), preds, target, tmp_path) for name, make in SEGMENTERS.items()}
    assert logged["korigins"]["test/iou"] == logged["kmunet"]["test/iou"]
    for figures in logged.values():
        assert_equal({k: v for k, v in figures.items() if k not in ("test/loss", "test/iou_batch")}, expected)
    assert set(logged["kmunet"]) == set(expected) - {"test/accuracy"} | {"test/loss"}
    assert set(logged["korigins"]) == {"test/loss", "test/iou", "test/accuracy", "test/iou_batch"}


# ---------------------------------------------------------------------- collections in a method


def test_figures_of_one_count_are_counted_once(monkeypatch) -> None:
    updates = []
    plain = segmentation.confusion_counts
    monkeypatch.setattr(segmentation, "confusion_counts", lambda *a: (updates.append(1), plain(*a))[1])
    metrics = overlap_metrics(3, by_class=True)
    for _ in range(4):
        metrics.update(torch.randint(3, (2, 4, 4)), torch.randint(3, (2, 4, 4)))
    assert len(metrics) == 8
    assert len(updates) == 4


def test_a_collection_forgets_and_goes_on_like_fresh_metrics() -> None:
    """Reset one by one, as Lightning does, read in the middle, copied, pickled: the shared count stays right."""
    preds, target = maps(3, 4, 6, 1)
    target = np.where(target == IGNORED, preds, target)
    metrics = overlap_metrics(4, by_class=True)
    for i in range(6):
        if i == 2:
            for metric in metrics.values(copy_state=False):
                metric.reset()
        if i == 3:
            metrics.compute()
            metrics = pickle.loads(pickle.dumps(copy.deepcopy(metrics)))
        metrics.update(torch.from_numpy(preds[i]), torch.from_numpy(target[i]))
    assert_equal(metrics.compute(), reference(preds[2:], target[2:], 4))


class Recorded(BaseMethod):
    """Logs the figures of maps that come with the batches, as a collection or one by one."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.together = together
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def step(self, batch, split):
        return {"loss": self.weight.square(), "preds": batch["image"][:, 0].long(), "target": batch["mask"]}

    def configure_metrics(self, split):
        if self.together:
            return overlap_metrics(4, IGNORED, by_class=True)
        return {"iou": ForegroundIoU(4, IGNORED), "dice_2": ClassDice(4, 2, IGNORED), "iou_3": ClassIoU(4, 3, IGNORED)}


class Epochs(torch.utils.data.Dataset):
    """Maps of 7 samples."""

    def __init__(self) -> None:
        self.preds, self.target = maps(11, 4, 3, 0)

    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        preds, target = (m.reshape(-1, 5, 5)[i] for m in (self.preds, self.target))
        return {"image": torch.from_numpy(preds)[None].float(), "mask": torch.from_numpy(target)}


def test_a_method_logs_a_collection_in_every_epoch_and_split(tmp_path) -> None:
    data = Epochs()
    trainer = Trainer(accelerator="cpu", max_epochs=3, default_root_dir=tmp_path, enable_progress_bar=False,
                      logger=False, enable_model_summary=False)  # fmt: skip
    method = Recorded(True)
    trainer.fit(method, DataLoader(data, batch_size=3), DataLoader(data, batch_size=2))
    expected = reference(data.preds.reshape(-1, 5, 5)[:7], data.target.reshape(-1, 5, 5)[:7], 4, IGNORED)
    for split in ("train", "val"):
        logged = {k: v for k, v in trainer.callback_metrics.items() if k.startswith(f"{split}/") and "loss" not in k}
        assert len(logged) == 10
        assert_equal(logged, {f"{split}/{name}": value for name, value in expected.items()})
    assert isinstance(method.metrics["val_collection"], MetricCollection)


@pytest.mark.parametrize("together", [True, False])
def test_two_processes_log_what_one_logs(tmp_path, together) -> None:
    common = {"accelerator": "cpu", "max_epochs": 2, "default_root_dir": tmp_path, "num_sanity_val_steps": 1}
    figures = []
    for extra in ({}, {"strategy": "ddp_fork", "devices": 2}):
        trainer = Trainer(**common, **extra)
        samples = [Epochs()[i] for i in range(6)]
        trainer.fit(Recorded(together), DataLoader(samples, batch_size=1), DataLoader(samples, batch_size=2))
        figures.append({k: float(v) for k, v in trainer.callback_metrics.items() if "loss" not in k})
    one, two = figures
    assert one.keys() == two.keys()
    assert len(one) == (20 if together else 6)
    for name in one:
        assert one[name] == two[name], name


# ---------------------------------------------------------------------- PSNR


def test_psnr_in_both_definitions() -> None:
    rng = np.random.default_rng(0)
    target = rng.random((5, 3, 4, 6)).astype(np.float32)
    preds = np.clip(target + rng.normal(0, 0.1, (5, 1, 1, 1)) * rng.random(target.shape), 0, 1).astype(np.float32)
    errors = ((preds - target).astype(np.float64) ** 2).reshape(5, -1).mean(1)
    each, pooled, flat = float_psnr(), float_psnr_pooled(), float_psnr(dims=2)
    for part in (slice(0, 2), slice(2, 5)):
        p, t = (torch.from_numpy(x[part]) for x in (preds, target))
        each.update(p, t)
        pooled.update(p, t)
        flat.update(p.flatten(1), t.flatten(1))
    assert float(each.compute()) == pytest.approx(np.mean(-10 * np.log10(errors)), rel=1e-6)
    assert float(flat.compute()) == float(each.compute())
    assert float(pooled.compute()) == pytest.approx(-10 * np.log10(errors.mean()), rel=1e-6)
    assert isinstance(pooled, PeakSignalNoiseRatio)


def test_psnr_of_8_bit_images_counts_images_wherever_they_fall() -> None:
    rng = np.random.default_rng(1)
    images, said = rng.integers(0, 256, (2, 4, 3, 5, 5))
    said[3] = images[3] + np.where(images[3] < 128, 1, -1)
    errors = ((images - said) ** 2).reshape(4, -1).mean(1)
    values = 10 * np.log10(255**2 / errors)
    metrics = MetricCollection({r: ImagePSNR(5, r) for r in ("mean", "lowest", "highest")},
                               compute_groups=[["mean", "lowest", "highest"]])  # fmt: skip
    as_float = [torch.from_numpy(x / 127.5 - 1) for x in (said, images)]
    for part in ([2, 0], [3, 1]):
        error = squared_error_8bit(*(x[part] for x in as_float))
        metrics.update(error, 75, torch.tensor(part))
    figures = metrics.compute()
    for name, expected in (("mean", values.mean()), ("lowest", values.min()), ("highest", values.max())):
        assert float(figures[name]) == pytest.approx(expected, rel=1e-6)
    assert metrics["mean"].per_image.isnan().tolist() == [False] * 4 + [True]


def test_the_old_module_of_psnr_is_this_one() -> None:
    assert framework.psnr.ImagePSNR is ImagePSNR
    assert framework.psnr.squared_error_8bit is squared_error_8bit


# ---------------------------------------------------------------------- what cannot be counted


@pytest.mark.parametrize("make", [lambda ignored: ForegroundIoU(3, ignored),
                                  lambda ignored: BatchForegroundIoU(3, ignored),
                                  lambda ignored: overlap_metrics(3, ignored, by_class=True)])  # fmt: skip
def test_a_class_that_cannot_be_is_named(make) -> None:
    fine = torch.tensor([[[0, 1, 2]]])
    for name, value, maps_ in (
        ("target", 255, (fine, torch.tensor([[[0, 1, 255]]]))),
        ("target", -1, (fine, torch.tensor([[[0, 1, -1]]]))),
        ("preds", 3, (torch.tensor([[[0, 1, 3]]]), fine)),
        ("preds", -1, (torch.tensor([[[0, 1, -1]]]), fine)),
    ):
        hint = f"; give ignore_index={value} if it marks pixels without a label" if name == "target" else "$"
        with pytest.raises(DataError, match=rf"{name}: expected classes 0 to 2 \(num_classes\), got {value}{hint}"):
            make(None).update(*maps_)
    for value in (255, -1):
        metric = make(value)
        metric.update(fine, torch.tensor([[[0, 1, value]]]))
        figure = metric.compute()
        # the pixel without a label is the only one of class 2
        assert float(figure["iou"] if isinstance(figure, dict) else figure) == 1.0


@pytest.mark.parametrize(
    ("preds", "target"),
    [((1, 4, 4, 4), (1, 4, 4)), ((1, 3, 4, 4), (1, 3, 4, 4)), ((1, 3, 4, 4), (1, 5, 4)), ((4, 4), (1, 4, 4))],
)
def test_scores_and_maps_that_do_not_fit_are_named(preds, target) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(preds, generator=generator)
    with pytest.raises(DataError, match=r"preds and target: expected .* or \(B, 3, H, W\) scores beside classes, got"):
        ForegroundIoU(3).update(scores, torch.zeros(target, dtype=torch.int64))


def test_scores_count_as_their_highest_class() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, target = torch.rand(1, 3, 4, 4, generator=generator), torch.randint(0, 3, (1, 4, 4), generator=generator)
    by_scores, by_classes = ForegroundIoU(3), ForegroundIoU(3)
    by_scores.update(scores, target)
    by_classes.update(scores.argmax(1), target)
    assert torch.equal(by_scores.confmat, by_classes.confmat)
    assert 0 < float(by_scores.compute()) < 1


NOTHING = {
    "iou": lambda: ForegroundIoU(3),
    "dice": lambda: ForegroundDice(3),
    "iou_1": lambda: ClassIoU(3, 1),
    "iou_batch": lambda: BatchForegroundIoU(3),
    "instance_f1": lambda: InstanceFigure("f1"),
    "instance_pq": lambda: InstanceFigure("pq"),
    "instance_count_error": lambda: InstanceFigure("count_error"),
    "loss": SampleMean,
    "psnr": float_psnr,
    "psnr_pooled": float_psnr_pooled,
    **{f"psnr_{kind}": lambda kind=kind: ImagePSNR(2, kind) for kind in ("mean", "lowest", "highest")},
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_without_a_sample_there_is_no_figure(name: str) -> None:
    assert NOTHING[name]().compute().isnan()


def test_background_alone_is_right_and_pixels_without_a_label_are_nothing() -> None:
    background, unlabelled = torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), IGNORED)
    for metric in (ForegroundIoU(3, IGNORED), BatchForegroundIoU(3, IGNORED)):
        metric.update(background, unlabelled)
        assert metric.compute().isnan()
        metric.reset()
        metric.update(background, background)
        assert float(metric.compute()) == 1.0
