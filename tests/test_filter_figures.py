"""The figures of `framework filters` and of filter replacement show what they are given."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from framework.commands.filters import layer_filters
from framework.commands.filters import run as filters
from framework.errors import CheckpointError, ConfigError, DataError
from framework.figures import (
    explained_energy,
    filter_panel,
    operator_histograms,
    operator_label,
    replacement_figure,
    sigma_distributions,
)
from framework.nn.filters.key_filters import NAMES


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_zero_is_white_and_signs_are_red_and_blue() -> None:
    filter_ = np.zeros((1, 3, 3))
    filter_[0, 0, 0], filter_[0, 2, 2] = 0.3, -0.1
    image = filter_panel(filter_).axes[0].images[0]
    colours = np.asarray(image.to_rgba(image.get_array()))
    np.testing.assert_allclose(colours[1, 1], 1, atol=0.01)
    red, blue = colours[0, 0], colours[2, 2]
    assert red[0] > red[2]
    assert blue[0] < blue[2]


def test_operator_names_are_drawn_as_mathematics() -> None:
    figure = filter_panel(np.ones((8, 3, 3)), [operator_label(name) for name in NAMES])
    figure.draw_without_rendering()
    assert operator_label("d_y^+ T") == r"$d_y^+\,T$"
    assert operator_label("delta - alpha Lap T") == r"$\delta - \alpha\, \nabla^2\,T$"


def test_every_filter_stands_in_the_bar_of_its_nearest_scale() -> None:
    grid = np.array([0.0, 0.5, 1.0, 3.0])
    two = np.array([[0.0, 0.5], [0.001, 3.0], [1.1, 40.0]])
    one = np.array([[0.5, 0.5], [0.5, 0.5]])
    figure = sigma_distributions({NAMES[0]: two, NAMES[6]: one, NAMES[7]: np.empty((0, 2))}, grid)
    first, seventh, empty = figure.axes[:3]
    heights = [[bar.get_height() for bar in container] for container in first.containers]
    assert heights == [[2, 0, 1, 0], [0, 1, 0, 2]]
    assert [[bar.get_height() for bar in c] for c in seventh.containers] == [[0, 2, 0, 0]]
    assert sum(bar.get_height() for c in empty.containers for bar in c) == 0
    assert legend(figure) == [r"$\sigma_x$", r"$\sigma_y$", "one scale"]


def test_shares_of_operators_fill_a_layer() -> None:
    figure = operator_histograms(np.array([[1, 2, 1], [0, 0, 5]]), ["a", "b"], NAMES[:3])
    widths = np.array([[bar.get_width() for bar in container] for container in figure.axes[0].containers])
    np.testing.assert_allclose(widths, [[0.25, 0], [0.5, 0], [0.25, 1]])
    with pytest.raises(DataError, match=r"counts \(1, 3\), 2 layers, 3 operators"):
        operator_histograms(np.ones((1, 3)), ["a", "b"], NAMES[:3])


def test_controls_share_one_entry_of_the_legend_and_banks_are_told_apart() -> None:
    banks = ["A", "B", "C1", "C2", "D1", "D2", "k-lines", "sigma-network", "sigma-filter"]
    energy = {name: np.full(2, 0.5) for name in [*banks, "random", "random-1"]}
    figure = explained_energy(energy, ["blocks.0.conv_dw", "blocks.1.conv_dw"])
    assert legend(figure) == [*banks, "random (2)"]
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len(set(looks)) == len(banks) + 1
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["blocks.0", "blocks.1"]


def test_bars_are_the_accuracies_of_the_table() -> None:
    table = pd.DataFrame(
        [
            ("original", False, 87.0),
            ("B", False, 4.5),
            ("B", True, 39.3),
            ("random", False, 0.2),
            ("random", True, 4.4),
        ],
        columns=["bank", "recalibrated", "top1"],
    )
    axis = replacement_figure(table).axes[0]
    assert [[bar.get_width() for bar in c] for c in axis.containers] == [[4.5, 0.2], [39.3, 4.4]]
    assert [text.get_text() for text in axis.texts] == ["4.5", "0.2", "39.3", "4.4"]
    with pytest.raises(DataError, match="no row 'original'"):
        replacement_figure(table[1:])


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Twelve layers in a file that stores them by the alphabet, the last two with larger kernels."""
    torch.manual_seed(0)
    sizes = {f"layers.{i}.weight": 3 if i < 10 else 5 for i in range(12)}
    path = tmp_path / "network.safetensors"
    save_file({name: torch.randn(6, 1, size, size) for name, size in sizes.items()}, path)
    return str(path)


def test_layers_of_a_file_come_in_the_order_of_the_network(weights: str) -> None:
    assert list(layer_filters(weights)) == [f"layers.{i}" for i in range(12)]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["match", "--banks", "B", "--out", "."], ["match.csv", "operators.png", "sigmas_5x5.png"]),
        (["extract", "--out", "."], ["key_filters.npz", "key_filters_3x3.png"]),
        (["show", "--methods", "A"], ["filters.png"]),
        (["show", "--methods", "A", "--out", "mine.png"], ["mine.png"]),
        (["show", "--methods", "A", "--out", "mine.png/below.png"], ["mine.png"]),
        (["fit", "nowhere.txt", "--out", "fits.csv"], ["fits.csv"]),
    ],
)
def test_no_file_that_is_there_is_replaced(words, names, weights, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("framework.nn.filters.banks.match_filters", None)  # nothing is computed
    network = [weights] if words[0] in ("match", "extract") else []
    for name in names:
        Path(name).write_text("precious")
        with pytest.raises(ConfigError, match=rf"out: .*{name}.*; give another --out"):
            filters([words[0], *network, *words[1:]])
        assert Path(name).read_text() == "precious"
        Path(name).unlink()


def test_a_tag_of_timm_is_no_ending_of_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tagged, plain = (layer_filters(name) for name in ("mobilenetv2_050.lamb_in1k", "mobilenetv2_050"))
    assert {name: w.shape for name, w in tagged.items()} == {name: w.shape for name, w in plain.items()}
    torch.save({"layer.weight": torch.randn(4, 1, 3, 3)}, tmp_path / "mine.weights")
    assert list(layer_filters("mine.weights")) == ["layer"]
    for name in ("mine.pth", "folder/mobilenetv2_050", "mine.safetensors"):
        with pytest.raises(CheckpointError, match=f"there is no file {name}"):
            layer_filters(name)


def test_match_and_extract_leave_exactly_their_tables_and_figures(weights: str, tmp_path: Path, capsys) -> None:
    assert filters(["match", weights, "--banks", "B", "random", "--out", str(tmp_path / "match")]) == 0
    figures = {"explained_energy.png", "operators.png", "sigmas_3x3.png", "sigmas_5x5.png"}
    assert {path.name for path in (tmp_path / "match").iterdir()} == figures | {"match.csv"}
    table = pd.read_csv(tmp_path / "match" / "match.csv")
    assert len(table) == 24
    assert table["filters"].sum() == table.filter(like="best_").sum().sum() == 2 * 72
    assert "network.safetensors: 72 filters" in capsys.readouterr().out
    assert filters(["extract", weights, "--count", "3", "--out", str(tmp_path / "extract")]) == 0
    figures = {"key_filters_3x3.png", "key_filters_5x5.png"}
    assert {path.name for path in (tmp_path / "extract").iterdir()} == figures | {"key_filters.npz"}
    bank = np.load(tmp_path / "extract" / "key_filters.npz")["size_5"]
    assert bank.shape == (3, 5, 5)
    np.testing.assert_allclose(np.linalg.norm(bank, axis=(1, 2)), 1)
