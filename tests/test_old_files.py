"""Checkpoints and configurations written before the modules were put into folders go on working."""

import importlib
from pathlib import Path

import pandas as pd
import pytest

import framework.nn

OLD = Path(__file__).parent / "data" / "before_the_move"
# every module path under which a public name could be imported before the move
OLD_MODULES = {
    "framework.base": ["BaseMethod", "BaseDataModule"],
    "framework.nn.korigins": ["KOrigins", "fold_korigins"],
    "framework.nn.bspline": ["bspline_basis"],
    "framework.nn.kan": ["KANConv2d", "KANConvTranspose2d", "KANLinear"],
    "framework.nn.spline_layer": ["SplineLayer", "spline_layers", "transfer_matrix"],
    "framework.nn.spline_moments": ["SplineMoments", "observe"],
    "framework.nn.experts": ["ExpertLinear", "nested_sort", "tile_index"],
    "framework.nn.siren": ["SineLayer"],
    "framework.nn.scale_space": ["discrete_gaussian"],
    "framework.nn.key_filters": ["key_filter", "fit_key_filters", "dc_offset"],
    "framework.nn.filter_banks": ["make_bank", "refit_bank", "dictionary"],
    "framework.nn.scale_space_conv": ["ScaleSpaceDepthwiseConv2d"],
    "framework.nn.replacement": ["swapped", "recalibrated"],
    "framework.nn.finola": ["Finola", "DIRECTIONS", "normalized"],
    "framework.nn.waves": ["wave_speeds"],
    "framework.nn.linear_codes": ["Pca", "dct_top"],
    "framework.nn.intensity": ["hellinger", "origins_from_statistics"],
    "framework.schedules": ["WarmupCosine"],
    "models.korigins": ["KOriginsSegmentation"],
    "models.kmunet": ["KMUNet"],
    "models.levels_of_experts": ["LevelsOfExperts"],
    "models.master_key": ["MasterKeyClassifier"],
    "models.finola.autoencoder": ["FinolaAutoencoder"],
    "models.finola.masked": ["MaskedFinola"],
}


@pytest.mark.parametrize("name", sorted(p.name for p in OLD.iterdir()))
def test_an_old_checkpoint_with_its_configuration_gives_the_old_figures(run, name) -> None:
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    cli = run("test", "-c", str(OLD / name / "config.yaml"), "--ckpt_path", str(OLD / name / "last.ckpt"), *quiet)
    old = pd.read_csv(OLD / name / "figures.csv").set_index("figure")["value"]
    now = {key: float(value) for key, value in cli.trainer.callback_metrics.items()}
    assert set(old.index) <= set(now)
    for key, value in old.items():
        assert now[key] == pytest.approx(float(value), rel=1e-5), key


@pytest.mark.parametrize("name", ["korigins", "kmunet"])
def test_a_fit_goes_on_from_an_old_checkpoint(run, name) -> None:
    words = ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=3"]
    cli = run("fit", "-c", str(OLD / name / "config.yaml"), "--ckpt_path", str(OLD / name / "last.ckpt"), *words)
    assert cli.trainer.current_epoch == 3


@pytest.mark.parametrize(("module", "names"), OLD_MODULES.items())
def test_public_names_are_found_where_they_were(module, names) -> None:
    found = importlib.import_module(module)
    assert all(hasattr(found, name) for name in names)


def test_every_public_layer_is_there() -> None:
    assert all(hasattr(framework.nn, name) for name in framework.nn.__all__)
