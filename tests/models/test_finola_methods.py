"""FinolaAutoencoder and MaskedFinola through the command line: every verb, DDP, divergence, files, leaks."""

import contextlib
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from skimage import io

from framework.errors import CheckpointError, ConfigError, DataError, DivergenceError
from framework.nn import Finola
from models import FinolaAutoencoder, MaskedFinola
from models.finola.masked import block_rollout
from models.finola.method import pixel_loss
from tests.helpers.methods import method_and_data
from tests.helpers.small import quiet

SMALL = [
    "--model.image_size=16",
    "--model.channels=8",
    "--model.encoder_width=4",
    "--model.encoder_depth=1",
    "--model.stride=4",
    "--model.decoder_width=8",
    "--data.image_size=16",
    "--data.crops=1",
    "--data.eval_crops=3",
    "--data.batch_size=4",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.max_epochs=2",
]
AUTO = ["-c", "finola/quickstart", *SMALL, "--model.map_size=8"]
MASKED = ["-c", "finola/masked_quickstart", *SMALL]


def folder(cli) -> Path:
    return Path(cli.trainer.log_dir)


def test_fit_leaves_figures_latents_and_logs(run) -> None:
    cli = run("fit", *AUTO)
    figures = {p.name for p in (folder(cli) / "figures").glob("*.png")}
    assert figures == {"reconstruction.png", "wave_speeds.png", "pde_residual.png", "training_curves.png"}
    log = pd.read_csv(folder(cli) / "metrics.csv")
    for name in ("val/psnr", "val/psnr_pooled", "val/ssim", "train/psnr"):
        assert np.isfinite(log[name].dropna()).all()
        assert log[name].notna().any()


def test_gradient_norms_are_logged_at_centre_and_corner(run) -> None:
    cli = run("fit", *AUTO, "--trainer.log_every_n_steps=1")
    log = pd.read_csv(folder(cli) / "metrics.csv")
    for name in ("train/grad_centre", "train/grad_corner"):
        values = log[name].dropna()
        assert len(values) == cli.trainer.global_step
        assert (values > 0).all()


def test_the_logged_norms_are_those_of_the_maps_gradient() -> None:
    torch.manual_seed(0)
    model = FinolaAutoencoder(8, image_size=16, map_size=8, encoder_width=4, stride=4, decoder_width=8, start=[1, 6])
    batch = {"image": torch.rand(2, 3, 16, 16), "index": torch.arange(2)}
    model.step(batch, "train")["loss"].backward()
    logged = model._grad_norms
    grown = model.network.grow(model.network.encode(batch["image"])).detach().requires_grad_()
    loss = pixel_loss("mse", (model.network.decoder(grown) + 1) / 2, batch["image"])
    (gradient,) = torch.autograd.grad(loss, grown)
    norms = gradient.norm(dim=1)
    assert float(logged["train/grad_centre"]) == pytest.approx(float(norms[:, 1, 6].mean()), rel=1e-4)
    assert float(logged["train/grad_corner"]) == pytest.approx(float(norms[:, -1, 0].mean()), rel=1e-4)


def test_predict_writes_reconstructions_and_latents_that_decode_to_them(run) -> None:
    fit = run("fit", *AUTO)
    checkpoint = fit.trainer.checkpoint_callback.best_model_path
    cli = run("predict", *AUTO, "--ckpt_path", checkpoint)
    written = folder(cli) / "predictions"
    assert len(list(written.glob("*_reconstruction.png"))) == len(list(written.glob("*_latent.npy"))) == 9
    latent = torch.from_numpy(np.load(written / "000004_latent.npy"))
    assert latent.shape == (1, 8)
    model = FinolaAutoencoder.load_from_checkpoint(checkpoint, weights_only=True).eval()
    with torch.no_grad():
        pixels = (255 * model.decode(latent[None])[0]).round().to(torch.uint8).numpy()
    shown = io.imread(written / "000004_reconstruction.png").transpose(2, 0, 1)
    assert np.abs(pixels.astype(int) - shown).max() <= 1


def test_figures_are_the_same_on_one_process_and_on_two(run) -> None:
    fit = run("fit", *AUTO)
    checkpoint = fit.trainer.checkpoint_callback.best_model_path
    words = ["test", *AUTO, "--ckpt_path", checkpoint, "--data.eval_batch_size=2"]
    one = run(*words).trainer.callback_metrics
    two = run(*words, "--trainer.strategy=ddp_fork", "--trainer.devices=2").trainer.callback_metrics
    for name in ("test/psnr", "test/psnr_pooled", "test/ssim", "test/loss"):
        assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-6)


def test_psnr_is_the_mean_of_the_images_and_psnr_pooled_that_of_the_mean_error(run) -> None:
    cli = run("test", *AUTO)
    data = cli.datamodule.datasets["test"]
    images = torch.stack([data[i]["image"] for i in range(len(data))])
    with torch.no_grad():
        preds = cli.model.eval()(images)
    mse = (preds - images).square().mean((1, 2, 3)).double()
    measured = cli.trainer.callback_metrics
    assert float(measured["test/psnr"]) == pytest.approx(float((-10 * mse.log10()).mean()), rel=1e-5)
    assert float(measured["test/psnr_pooled"]) == pytest.approx(float(-10 * mse.mean().log10()), rel=1e-5)


def test_a_diverging_run_stops_and_keeps_the_best(run) -> None:
    words = [*AUTO, "--model.optimizer.init_args.lr=1e-3", "--model.lr_scheduler=null", "--trainer.max_epochs=3"]
    with pytest.raises(DivergenceError, match=r"the loss is nan at step \d+.*the last good checkpoint is .*ckpt"):
        run("fit", *words, "--trainer.callbacks+=tests.models.test_finola_methods.PoisonLater")
    assert list(Path("runs").rglob("best*.ckpt"))


class PoisonLater(Callback):
    """Puts a NaN into the matrices after two epochs."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == 2:
            with torch.no_grad():
                pl_module.network.growth.weight[0, 0, 0] = math.nan


def test_bf16_training_works_and_keeps_the_map_in_float32(run) -> None:
    cli = run("fit", *AUTO, "--trainer.precision=bf16-mixed", "--trainer.max_epochs=1")
    assert math.isfinite(float(cli.trainer.callback_metrics["train/loss"]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        q = cli.model.encode(torch.rand(1, 3, 16, 16))
        assert cli.model.network.grow(q).dtype == torch.float32


def test_ema_of_lightning_works_with_the_method(run) -> None:
    ema = "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"
    cli = run("fit", *AUTO, ema, "--trainer.callbacks.decay=0.9", "--trainer.max_epochs=1")
    assert cli.trainer.state.finished


def test_weight_decay_spares_the_matrices_and_the_seeds() -> None:
    model = FinolaAutoencoder(8, image_size=16, map_size=8, encoder_width=4, stride=4, decoder_width=8)
    decayed, spared = model.parameter_groups()
    assert "weight_decay" not in decayed
    assert spared["weight_decay"] == 0.0
    ids = {id(p) for p in spared["params"]}
    assert {id(model.network.growth.weight), id(model.network.pool.seeds)} <= ids
    assert id(model.network.pool.out.weight) not in ids
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_the_matrices_may_have_a_rate_of_their_own() -> None:
    model = FinolaAutoencoder(8, image_size=16, map_size=8, encoder_width=4, stride=4, decoder_width=8, matrix_lr=1e-4)
    optimizer = model.configure_optimizers()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert rates.pop(id(model.network.growth.weight)) == 1e-4
    assert set(rates.values()) == {1e-3}
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups if group.get("name") == "matrices")


@pytest.mark.parametrize("method", [FinolaAutoencoder, MaskedFinola])
def test_a_rate_that_is_not_positive_is_named(method) -> None:
    with pytest.raises(ConfigError, match="model.matrix_lr: expected a positive learning rate or null, got 0"):
        method(matrix_lr=0.0)


@pytest.mark.parametrize(("kind", "expected"), [("mse", 0.04), ("l1", 0.2), ("l1+mse", 0.24)])
def test_losses_are_on_pixels_in_minus_one_to_one(kind, expected) -> None:
    assert float(pixel_loss(kind, torch.full((2, 3), 0.6), torch.full((2, 3), 0.5))) == pytest.approx(expected)


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(ConfigError, match="model.loss: expected one of mse, l1"):
        FinolaAutoencoder(loss="huber")


def test_a_checkpoint_of_the_other_method_is_refused(run) -> None:
    fit = run("fit", *AUTO, "--trainer.max_epochs=1")
    with pytest.raises(CheckpointError, match=r"FinolaAutoencoder.*MaskedFinola"):
        run("test", *MASKED, "--ckpt_path", fit.trainer.checkpoint_callback.best_model_path)


# ---------------------------------------------------------------------- folders of pictures


def pictures(root: Path, count: int = 4) -> Path:
    rng = np.random.default_rng(0)
    root.mkdir()
    for i in range(count):
        io.imsave(root / f"{i}.png", rng.integers(0, 255, (20, 24, 3), dtype=np.uint8), check_contrast=False)
    return root


def folder_words(root: Path) -> list[str]:
    words = [w for w in AUTO if not w.startswith(("--data.crops", "--data.eval_crops"))]
    return [*words, "--data=ImageFolderDataModule", f"--data.root={root}", "--data.image_size=16",
            "--data.val_fraction=0.5", "--data.batch_size=2"]  # fmt: skip


def test_grey_and_rgba_pictures_are_read_as_rgb(run, tmp_path) -> None:
    root = pictures(tmp_path / "p")
    rng = np.random.default_rng(1)
    io.imsave(root / "grey.png", rng.integers(0, 255, (20, 24), dtype=np.uint8), check_contrast=False)
    io.imsave(root / "rgba.png", rng.integers(0, 255, (20, 24, 4), dtype=np.uint8), check_contrast=False)
    assert run("test", *folder_words(root)).trainer.state.finished


def test_a_corrupt_picture_is_named(run, tmp_path) -> None:
    root = pictures(tmp_path / "p")
    (root / "0.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"0\.png cannot be read as a picture"):
        run("test", *folder_words(root))


def test_an_empty_folder_is_named(run, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        run("test", *folder_words(tmp_path / "empty"))


def test_a_data_size_that_differs_from_the_models_is_named(run) -> None:
    with pytest.raises(
        ConfigError, match=r"image: expected \(B, 3, 16, 16\), got .*model.image_size and data.image_size"
    ):
        run("test", *AUTO, "--data.image_size=20")


# ---------------------------------------------------------------------- masked


@pytest.mark.parametrize("mode", ["element", "block"])
def test_masked_fit_and_probe(run, mode) -> None:
    cli = run("fit", *MASKED, f"--model.mode={mode}")
    log = pd.read_csv(folder(cli) / "metrics.csv")
    assert 0 <= log["probe/accuracy"].dropna().iloc[-1] <= 1
    assert (folder(cli) / "figures" / "masked.png").is_file()


def masked(**kwargs) -> MaskedFinola:
    torch.manual_seed(0)
    small = {"channels": 8, "image_size": 16, "encoder_width": 4, "encoder_depth": 1, "stride": 2, "decoder_width": 8}
    return MaskedFinola(**{**small, **kwargs}).eval()


@pytest.mark.parametrize("mode", ["element", "block"])
def test_nothing_leaks_from_the_masked_part(mode) -> None:
    model = masked(mode=mode, positions="all")
    image, corner = torch.rand(1, 3, 16, 16, requires_grad=True), (2, 3)
    (gradient,) = torch.autograd.grad(model(image, corner).square().sum(), image)
    hidden = model.masked(corner, image.device)
    assert gradient[..., hidden].abs().max() == 0
    assert gradient[..., ~hidden].abs().min() > 0


@pytest.mark.parametrize("corner", [(0, 0), (0, 4), (4, 0), (4, 4), (2, 1)])
def test_every_masked_cell_has_one_source_half_a_map_away(corner) -> None:
    """The reviewer's example: (3, 2) predicts (11, 2), (3, 10), (11, 10); other positions wrap."""
    torch.manual_seed(0)
    layer, half = Finola(5).double(), 4
    visible = torch.randn(2, 5, half, half, dtype=torch.float64)
    grown = block_rollout(layer, visible, corner)
    row, col = corner

    def walked(z, start, goal, ahead, behind):
        return z if start == goal else layer.walk(z, ahead if goal > start else behind, half)

    for i, j in np.ndindex(half, half):
        z, y, x = visible[:, :, i, j], row + i, col + j
        far_y, far_x = (v + half if v < half else v - half for v in (y, x))
        torch.testing.assert_close(grown[:, :, y, x].double(), z, rtol=1e-6, atol=1e-6)
        across = walked(z, x, far_x, "right", "left")
        along = walked(z, y, far_y, "down", "up")
        both = (walked(across, y, far_y, "down", "up") + walked(along, x, far_x, "right", "left")) / 2
        for expected, (r, c) in ((across, (y, far_x)), (along, (far_y, x)), (both, (far_y, far_x))):
            torch.testing.assert_close(grown[:, :, r, c].double(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_blocks_are_drawn_from_seed_epoch_and_index() -> None:
    model, index = masked(positions="all"), torch.arange(50)
    first = model.corners(index, 0)
    torch.rand(3)  # the global generator does not matter
    assert model.corners(index, 0) == first
    assert model.corners(index, 1) != first
    assert model.corners(index[10:12], 0) == first[10:12]
    assert {r for r, _ in first} <= set(range(5))
    assert len(set(masked().corners(index, 0))) == 4


def test_samples_keep_their_place_whatever_their_block() -> None:
    model = masked()
    image = torch.rand(6, 3, 16, 16)
    corners = model.corners(torch.arange(6), 0)
    together, _ = model.predict_all(image, corners)
    for i, corner in enumerate(corners):
        torch.testing.assert_close(together[i : i + 1], model(image[i : i + 1], corner), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 18}, r"multiple of twice model.stride \(2 x 2\), got 18"),
        ({"mode": "pixel"}, "model.mode: expected element or block"),
        ({"channels": 1}, "model.channels: expected at least 2"),
    ],
)
def test_bad_arguments_of_masked_finola_are_named(kwargs, message) -> None:
    with pytest.raises(ConfigError, match=message):
        masked(**kwargs)


def test_the_probe_refuses_a_module_without_features(run) -> None:
    with pytest.raises(ConfigError, match="LinearProbe: FinolaAutoencoder has no method features"):
        run("fit", *AUTO, "--trainer.callbacks+=LinearProbe")


def test_logged_gradients_are_the_losss_whatever_it_is_multiplied_by(tmp_path) -> None:
    class Takes(Callback):
        def __init__(self) -> None:
            self.norms: list[dict[str, float]] = []

        def on_after_backward(self, trainer, pl_module) -> None:
            self.norms.append({name: float(value) for name, value in pl_module._grad_norms.items()})

    seen = []
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    scaled.forward_context = contextlib.nullcontext  # the scale alone
    for words in ({}, {"plugins": [scaled]}, {"accumulate_grad_batches": 2}):
        module, data = method_and_data("finola", tmp_path)
        takes = Takes()
        trainer = quiet(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[takes], **words)
        trainer.fit(module, data)
        seen.append(takes.norms[0])
    assert set(seen[0]) == {"train/grad_centre", "train/grad_corner"}
    assert seen[1] == pytest.approx(seen[0], rel=1e-4)
    assert seen[2] == pytest.approx(seen[0], rel=1e-4)
