"""Many banks in one test: the figures, the weights afterwards, ranks, and real networks."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from callbacks import FilterReplacement
from datamodules import GeneratedImagesDataModule
from framework.errors import ConfigError
from framework.nn import (
    ScaleSpaceDepthwiseConv2d,
    approximate,
    depthwise_convolutions,
    idealised_bank,
    make_bank,
    match_filters,
)

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
TINY = ["-c", "master_key/quickstart", "--model.model_args={depths: [1, 1, 1, 1], dims: [8, 16, 16, 16]}", *QUIET]
TINY += ["--data.image_size=32", "--data.val_images=37", "--data.batch_size=8", "--data.calibration_images=8"]


class Plain(LightningModule):
    """A user's own module: a network and a test step, nothing of ours."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 8),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def test_step(self, batch: dict, batch_idx: int) -> None:
        self(batch["image"])

    validation_step = test_step


def trainer(tmp_path: Path, callback: FilterReplacement, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=tmp_path, callbacks=[callback], **{**quiet, **options})


def data(**options) -> GeneratedImagesDataModule:
    return GeneratedImagesDataModule(**({"image_size": 16, "val_images": 21, "batch_size": 8} | options))


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: t.detach().numpy().tobytes() for name, t in module.state_dict().items()}


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_every_row_is_the_accuracy_of_a_network_with_those_filters(tmp_path: Path, verb: str) -> None:
    torch.manual_seed(0)
    module, banks = Plain(), ["B", "random", "sigma-filter"]
    callback = FilterReplacement(banks)
    before = bits(module)
    module.train()
    getattr(trainer(tmp_path, callback), verb)(module, datamodule=(source := data()), verbose=False)
    assert bits(module) == before
    assert callback.table is not None
    assert callback.table["bank"].tolist() == ["original", *banks]
    dataset = source.configure_dataset("test" if verb == "test" else "val")
    images = torch.stack([dataset[i]["image"] for i in range(21)])
    labels = torch.stack([dataset[i]["label"] for i in range(21)])
    module.eval()
    conv = module.net[2]
    original = conv.weight.detach().clone()
    for row in callback.table.to_dict("records"):
        if row["bank"] != "original":
            y = original.flatten(0, 1)
            bank = make_bank(row["bank"], {"net.2": y})["net.2"]
            match = match_filters(y, bank)
            conv.weight.data = approximate(match, bank).unsqueeze(1).float()
            assert row["explained_energy"] == pytest.approx(match.explained())
        with torch.no_grad():
            top = module(images).topk(5, 1).indices == labels[:, None]
        assert row["top1"] == pytest.approx(100 * float(top[:, 0].float().mean()))
        assert row["top5"] == pytest.approx(100 * float(top.any(1).float().mean()))


@pytest.mark.parametrize("norm", [True, False])
def test_recalibrated_rows_stand_apart_and_keep_the_bank(tmp_path: Path, norm: bool) -> None:
    torch.manual_seed(0)
    module, callback = Plain(norm), FilterReplacement(["random"], recalibrate="affine")
    before = bits(module)
    trainer(tmp_path, callback).test(module, datamodule=data(), verbose=False)
    assert bits(module) == before
    assert callback.table is not None
    assert callback.table["recalibrated"].tolist() == [False, False, True]


def test_the_shared_prefix_changes_no_figure(tmp_path: Path) -> None:
    tables = []
    for share in (True, False):
        torch.manual_seed(1)
        callback = FilterReplacement(["B", "random"], recalibrate="affine", share_prefix=share)
        trainer(tmp_path, callback).test(Plain(), datamodule=data(), verbose=False)
        tables.append(callback.table)
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_weights_are_back_after_an_interruption_in_the_middle_of_a_bank(tmp_path: Path, at: int) -> None:
    module = Plain()
    before = bits(module)
    calls = []

    def interrupt(*_) -> None:
        calls.append(1)
        if len(calls) > 2 + at:
            raise RuntimeError("interrupted")

    module.net[2].register_forward_hook(interrupt)
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(tmp_path, FilterReplacement(["B", "random"], recalibrate="affine")).test(
            module, datamodule=data(), verbose=False
        )
    assert bits(module) == before
    assert "forward" not in vars(module.net[0])


def test_a_fit_is_left_alone(run, tmp_path: Path) -> None:
    cli = run("fit", *TINY, "-c", "trainer/debug", "--data.train_images=16")
    assert not list(tmp_path.rglob("filter_replacement.csv"))
    assert cli.trainer.state.finished


def test_quickstart_writes_table_and_figures(run, tmp_path: Path) -> None:
    run("test", *TINY)
    table = pd.read_csv(next(tmp_path.rglob("filter_replacement.csv")))
    assert list(table.columns) == [
        "bank",
        "recalibrated",
        "top1",
        "top5",
        "drop",
        "explained_energy",
        "parameters",
    ]
    assert set(table["bank"]) == {"original", "B", "random", "k-lines", "sigma-network"}
    figures = {path.name for path in tmp_path.rglob("figures/*.png")}
    assert figures == {"filter_replacement.png", "explained_energy.png", "depthwise_filters.png"}


def test_two_processes_give_the_same_table(run, tmp_path: Path) -> None:
    tables = []
    for devices in (1, 2):
        run("test", *TINY, f"--trainer.devices={devices}", "--trainer.strategy=ddp_fork", f"--name=ranks{devices}")
        tables.append(pd.read_csv(next((tmp_path / "runs" / f"ranks{devices}").rglob("filter_replacement.csv"))))
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert tables[0]["top1"].nunique() > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"banks": []}, "expected distinct banks, at least one"),
        ({"banks": ["B", "B"]}, "expected distinct banks"),
        ({"recalibrate": "magic"}, "recalibrate: expected affine, statistics or null"),
    ],
)
def test_bad_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FilterReplacement(**options)


def test_what_cannot_be_replaced_is_named_at_setup(tmp_path: Path) -> None:
    class Dense(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net[2] = nn.Conv2d(8, 8, 3, padding=1)

    with pytest.raises(ConfigError, match="Dense has no depthwise convolution"):
        trainer(tmp_path, FilterReplacement(["B"])).test(Dense(), datamodule=data(), verbose=False)
    with pytest.raises(ConfigError, match="'learned' needs the extracted filters"):
        trainer(tmp_path, FilterReplacement(["learned"])).test(Plain(), datamodule=data(), verbose=False)
    loader: DataLoader = DataLoader([{"image": torch.zeros(3, 16, 16), "label": torch.tensor(0)}])
    with pytest.raises(ConfigError, match=r"recalibrate: NoneType has no calibration_dataset\(\)"):
        trainer(tmp_path, FilterReplacement(["B"], recalibrate="affine")).test(Plain(), loader, verbose=False)
    with pytest.raises(ConfigError, match="keys 'image' and 'label'"):
        trainer(tmp_path, FilterReplacement(["B"])).test(
            Plain(), DataLoader([{"image": torch.zeros(3, 16, 16)}]), verbose=False
        )


# ------------------------------------------------------------------------------------------------------ real networks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2", "mobilenet_edgetpu"])
def test_real_networks_with_three_banks_on_fifty_pictures(run, shared_data: Path, name: str) -> None:
    words = ["-c", f"master_key/{name}", *QUIET, f"--data.root={shared_data / 'imagenet_sample_256'}"]
    file = "mobilenet_v2" if name == "mobilenetv2" else "mobilenet_edgetpu_100"
    words += [f"--model.checkpoint={shared_data / f'{name}_imagenet' / f'{file}.fp16.safetensors'}"]
    # every twentieth picture
    words += ["--data.val_fraction=0.05", "--data.calibration_images=64", "--data.eval_batch_size=10"]
    words += ["--trainer.callbacks=FilterReplacement", "--trainer.callbacks.banks=[B, random, sigma-filter]"]
    words += ["--trainer.callbacks.recalibrate=affine"]
    cli = run("test", *words)
    filters = {"mobilenetv2": 7136, "mobilenet_edgetpu": 2688 + 4736}[name]
    assert sum(c.out_channels for c in depthwise_convolutions(cli.model).values()) == filters
    callback = next(c for c in cli.trainer.callbacks if isinstance(c, FilterReplacement))
    rows = callback.table.set_index(["bank", "recalibrated"])
    table, energy = rows["top1"], rows["explained_energy"]
    # 87 on all 936 pictures for both networks, less two standard errors of a share of 50
    assert table["original", False] > 87 - 2 * 4.8
    assert table["B", True] > table["B", False]
    assert table["B", True] > table["random", True] + 20
    assert energy["sigma-filter", False] > energy["B", False] > energy["random", False]


@pytest.fixture
def fine_tune(run, shared_data: Path):
    """Two steps of the small fine-tune on real pictures, with further words."""

    def call(*words: str):
        small = ["-c", "master_key/tiny_imagenet_20", *words, "-c", "trainer/debug", *QUIET]
        small += [f"--data.root={shared_data / 'tiny_imagenet_20'}", "--data.batch_size=4"]
        small += ["--model.model_args={depths: [1, 1, 1, 1], dims: [8, 16, 16, 16], patch_size: 2}"]
        cli = run("fit", *small)
        assert cli.trainer.global_step == 2
        return cli.model

    return call


@pytest.mark.slow
def test_a_frozen_network_fine_tunes_on_real_pictures(fine_tune) -> None:
    model, bank = fine_tune(), idealised_bank("B")
    for conv in depthwise_convolutions(model).values():
        assert not conv.weight.requires_grad
        # still a x + b after the steps, bias trained
        energy = match_filters(conv.weight.flatten(0, 1), bank).energy
        torch.testing.assert_close(energy, torch.ones_like(energy), rtol=0, atol=1e-6)
        assert bool((conv.bias != 0).any())


@pytest.mark.slow
def test_scales_are_fine_tuned_on_real_pictures(fine_tune) -> None:
    model = fine_tune("-c", "master_key/overlays/learned_scale")
    layers = [m for m in model.modules() if isinstance(m, ScaleSpaceDepthwiseConv2d)]
    assert len(layers) == 4
    for layer in layers:
        moved = (layer.sigma.detach() - 1.5).abs()
        assert 1e-4 < float(moved.max()) < 0.1
        assert bool(torch.isfinite(layer.kernel()).all())
