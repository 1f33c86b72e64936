"""The synthetic 16-bit squares against written-out references, exact expectations and the published cover."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal, stats
from skimage.morphology import disk
from torch.utils.data import DataLoader

from datamodules.squares_data import PRESETS, SquaresDataset, SquaresPreset, draw_sample
from framework.errors import ConfigError

SMALL = SquaresPreset("small", 6, 24, (2, 5), (3, 2), (20000, 25000, 15000), (500, 0, 1500))


def generator(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index,))))


def noise_free(preset: SquaresPreset) -> SquaresPreset:
    return replace(preset, std=np.zeros_like(np.asarray(preset.mean)).tolist())


def reference_sample(preset: SquaresPreset, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel asks every shape, in order, whether it lies inside."""
    rng, side, (low, high) = generator(seed, index), preset.side, preset.radius_range
    count = sum(preset.shapes_per_class)
    centres = rng.integers(low, side - low, size=(count, 2))
    radii = rng.integers(low, high, size=count)
    kinds = [preset.shape_kind] * count
    if preset.shape_kind == "both":
        kinds = ["circle" if bit else "square" for bit in rng.integers(0, 2, size=count)]
    labels = []
    for position, number in enumerate(preset.shapes_per_class):
        labels += [position + 1] * number
    mask = np.zeros((side, side), np.int64)
    for y in range(side):
        for x in range(side):
            for (cy, cx), r, kind, label in zip(centres, radii, kinds, labels, strict=True):
                dy, dx = abs(y - cy), abs(x - cx)
                if (dy * dy + dx * dx <= r * r) if kind == "circle" else max(dy, dx) <= r:
                    mask[y, x] = label
    mean = np.reshape(np.array(preset.mean, np.float32), (preset.num_classes, preset.channels))
    std = np.reshape(np.array(preset.std, np.float32), (preset.num_classes, preset.channels))
    noise = rng.standard_normal((preset.channels, side, side), dtype=np.float32)
    image = np.zeros((preset.channels, side, side), np.int64)
    for c, y, x in np.ndindex(image.shape):
        label = mask[y, x]
        image[c, y, x] = int(min(max(noise[c, y, x] * std[label, c] + mean[label, c], 0), 65535))
    return image, mask


def expected_class_cover(preset: SquaresPreset) -> np.ndarray:
    """Exact expected fraction of every class: a pixel shows class i if a shape of i and none of a later class hits."""
    low, high = preset.radius_range
    centres = np.zeros((preset.side, preset.side))
    centres[low : preset.side - low, low : preset.side - low] = 1 / (preset.side - 2 * low) ** 2
    hit = np.zeros_like(centres)
    for radius in range(low, high):
        square, circle = np.ones((2 * radius + 1,) * 2), disk(radius).astype(float)
        footprint = {"square": square, "circle": circle, "both": (square + circle) / 2}[preset.shape_kind]
        hit += signal.fftconvolve(centres, footprint, mode="same") / (high - low)
    cover = []
    for label, count in enumerate(preset.shapes_per_class, start=1):
        later = prod([(1 - hit) ** n for n in preset.shapes_per_class[label:]], start=np.ones_like(hit))
        cover.append(((1 - (1 - hit) ** count) * later).mean())
    return np.array([1 - sum(cover), *cover])


@pytest.mark.parametrize("name", PRESETS)
def test_the_cover_of_every_class_is_the_exact_expectation(name: str) -> None:
    preset, samples = noise_free(PRESETS[name]), 40
    observed = np.array(
        [
            np.bincount(draw_sample(preset, 1, i)[1].ravel(), minlength=preset.num_classes) / preset.side**2
            for i in range(samples)
        ]
    )
    error = observed.std(axis=0, ddof=1) / np.sqrt(samples)
    difference = np.abs(observed.mean(axis=0) - expected_class_cover(preset))
    assert (difference <= 4 * error + 1e-12).all(), (difference, error)
    assert (observed.max(axis=0) > 0).tolist() == [True, *(n > 0 for n in preset.shapes_per_class)]


@pytest.mark.parametrize(
    ("name", "cover"),
    [("rfl_failure", 0.165), ("mixed", 0.15), ("int_layer", 0.46), ("int_layer_rgb", 0.46), ("proof_of_failure", 0.55)],
)
def test_the_foreground_cover_is_the_published_one_less_what_the_edge_clips(name: str, cover: float) -> None:
    """The published figures are 1 - exp(-area of all shapes / area of the image), as if no shape were clipped."""
    preset = noise_free(PRESETS[name])
    area = np.mean([(2 * radius + 1) ** 2 for radius in range(*preset.radius_range)])
    unclipped = 1 - np.exp(-sum(preset.shapes_per_class) * area / preset.side**2)
    assert unclipped == pytest.approx(cover, abs=0.005)
    drawn = [(draw_sample(preset, 2, i)[1] > 0).mean() for i in range(100)]
    error = np.std(drawn, ddof=1) / 10
    assert unclipped - 0.025 - 4 * error < np.mean(drawn) < unclipped + 4 * error


def test_the_presets_have_the_published_sizes() -> None:
    sizes = {name: (p.images, p.side, p.num_classes, p.channels, p.radius_range) for name, p in PRESETS.items()}
    assert sizes == {
        "rfl_failure": (200, 400, 3, 1, (8, 9)),
        "mixed": (200, 200, 2, 1, (5, 15)),
        "proof_of_failure": (500, 200, 3, 1, (10, 15)),
        "int_layer": (200, 200, 6, 1, (9, 13)),
        "int_layer_rgb": (200, 200, 6, 3, (9, 13)),
        "squares_x2": (200, 200, 3, 1, (3, 7)),
        "augmentation_mixed": (1000, 200, 3, 1, (5, 13)),
        "augmentation_pure_first": (1000, 200, 3, 1, (5, 13)),
        "augmentation_pure_second": (1000, 200, 3, 1, (5, 13)),
        "what_we_segment": (100, 100, 5, 1, (3, 7)),
        "rgb_pathology": (100, 300, 4, 3, (3, 7)),
        "template": (200, 200, 2, 1, (3, 7)),
    }
    assert all(preset.name == name for name, preset in PRESETS.items())


@pytest.mark.parametrize("kind", ["square", "circle", "both"])
@pytest.mark.parametrize("radii", [(0, 3), (2, 5), (8, 12)])
def test_a_sample_equals_the_written_out_reference(kind: str, radii: tuple[int, int]) -> None:
    preset = replace(SMALL, shape_kind=kind, radius_range=radii)
    for index in range(3):
        image, mask = draw_sample(preset, 11, index)
        expected_image, expected_mask = reference_sample(preset, 11, index)
        assert (image.dtype, mask.dtype) == (np.uint16, np.uint8)
        np.testing.assert_array_equal(mask, expected_mask)
        np.testing.assert_array_equal(image, expected_image)


def test_an_rgb_sample_equals_the_written_out_reference() -> None:
    preset = replace(PRESETS["rgb_pathology"], side=24, shapes_per_class=(6, 2, 1))
    image, mask = draw_sample(preset, 3, 5)
    expected_image, expected_mask = reference_sample(preset, 3, 5)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_array_equal(image, expected_image)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if np.any(preset.std)])
def test_the_pixels_of_a_class_have_its_mean_and_standard_deviation(name: str) -> None:
    preset = PRESETS[name]
    drawn = [draw_sample(preset, 4, i) for i in range(8)]
    for label, channel in np.ndindex(preset.num_classes, preset.channels):
        pixels = np.concatenate([image[channel][mask == label] for image, mask in drawn]).astype(np.float64)
        if pixels.size == 0:
            assert preset.shapes_per_class[label - 1] == 0
            continue
        mean = np.reshape(preset.mean, (preset.num_classes, -1))[label, channel]
        std = np.reshape(preset.std, (preset.num_classes, -1))[label, channel]
        assert pixels.mean() == pytest.approx(mean - 0.5, abs=4.5 * std / np.sqrt(pixels.size))
        assert pixels.std() == pytest.approx(std, rel=4.5 / np.sqrt(2 * pixels.size))
        assert stats.kstest((pixels[:20000] + 0.5 - mean) / std, "norm").pvalue > 1e-3


def test_noise_is_independent_between_pixels_channels_and_samples() -> None:
    preset = replace(PRESETS["rgb_pathology"], side=200, shapes_per_class=(0, 0, 0))
    first, second = (draw_sample(preset, 0, i)[0].astype(np.float64) for i in (0, 1))
    bound = 4.5 / np.sqrt(200 * 199)
    for a, b in [
        (first[0, :, 1:], first[0, :, :-1]),
        (first[0, 1:], first[0, :-1]),
        (first[0], first[1]),
        (first[1], first[2]),
        (first[0], second[0]),
    ]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < bound


@pytest.mark.parametrize(("mean", "border"), [(100, 0), (65435, 65535)])
def test_noise_beyond_16_bits_saturates_and_never_wraps(mean: int, border: int) -> None:
    preset = replace(PRESETS["mixed"], mean=(mean, mean), std=(5000, 5000))
    image = draw_sample(preset, 0, 0)[0].astype(np.int64)
    beyond = stats.norm.cdf(-100 / 5000)
    assert (image == border).mean() == pytest.approx(beyond, abs=4.5 * np.sqrt(beyond / image.size))
    assert np.abs(image - mean).max() < 6 * 5000


def test_samples_do_not_depend_on_access_order_cache_or_the_global_generators() -> None:
    expected = [draw_sample(SMALL, 7, i) for i in range(6)]
    np.random.seed(123)  # noqa: NPY002
    torch.manual_seed(123)
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    for cache in (False, True):
        dataset = SquaresDataset(SMALL, 7, cache=cache)
        for i in (5, 0, 3, 3, 1, 4, 2, 5):
            sample = dataset[i]
            np.testing.assert_array_equal(sample["image"].numpy(), expected[i][0])
            np.testing.assert_array_equal(sample["mask"].numpy(), expected[i][1])
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_worker_processes_draw_the_same_samples() -> None:
    dataset = SquaresDataset(SMALL, 7, cache=True)
    loader = DataLoader(
        dataset, batch_size=2, shuffle=True, num_workers=2, multiprocessing_context="fork",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    seen = []
    for batch in loader:
        for image, mask, index in zip(batch["image"], batch["mask"], batch["index"], strict=True):
            expected_image, expected_mask = draw_sample(SMALL, 7, int(index))
            np.testing.assert_array_equal(image.numpy(), expected_image)
            np.testing.assert_array_equal(mask.numpy(), expected_mask)
            seen.append(int(index))
    assert sorted(seen) == list(range(6))


def test_every_seed_and_index_gives_another_sample() -> None:
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0), (2**32, 1), (0, 2**32)]
    assert len({draw_sample(SMALL, *key)[0].tobytes() for key in keys}) == len(keys)


def test_presets_that_differ_in_intensity_only_share_their_label_maps_and_noise() -> None:
    base, scaled = (replace(PRESETS["mixed"], mean=(30000, 30000), std=(s, s)) for s in (1000, 2000))
    (image, mask), (wider, same) = draw_sample(base, 5, 9), draw_sample(scaled, 5, 9)
    np.testing.assert_array_equal(mask, same)
    difference = (wider.astype(np.int64) - 30000) - 2 * (image.astype(np.int64) - 30000)
    assert difference.min() >= -1
    assert difference.max() <= 2
    np.testing.assert_array_equal(mask, draw_sample(noise_free(base), 5, 9)[1])


def test_the_dataset_returns_fresh_tensors_of_the_contract() -> None:
    dataset = SquaresDataset(replace(PRESETS["int_layer_rgb"], side=48), 3, indices=[140, 150], cache=True)
    sample = dataset[1]
    assert len(dataset) == 2
    assert sample["image"].shape == (3, 48, 48)
    assert sample["image"].dtype == torch.float32
    assert sample["mask"].shape == (48, 48)
    assert sample["mask"].dtype == torch.int64
    assert sample["index"].shape == ()
    assert sample["index"].dtype == torch.int64
    assert int(sample["index"]) == 150
    before = {key: value.clone() for key, value in sample.items()}
    sample["image"].zero_()
    sample["mask"].zero_()
    assert all(torch.equal(dataset[1][key], before[key]) for key in before)
    with pytest.raises(IndexError):
        dataset[2]


def test_the_cache_draws_each_sample_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def count(preset: SquaresPreset, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(index)
        return draw_sample(preset, seed, index)

    monkeypatch.setattr("datamodules.squares_data.draw_sample", count)
    for cache, times in ((True, 1), (False, 2)):
        drawn.clear()
        dataset = SquaresDataset(SMALL, 0, indices=[4, 2], cache=cache)
        for i in (0, 1, 0, 1):
            dataset[i]
        assert sorted(drawn) == sorted([4, 2] * times)


presets = st.builds(
    lambda low, width, spare, counts, values, kind: SquaresPreset(
        "drawn", 1, 2 * (low + width) + 1 + spare, (low, low + width), counts, values[: len(counts) + 1],
        [0] * (len(counts) + 1), kind,
    ),
    st.integers(0, 6), st.integers(1, 5), st.integers(0, 20), st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.lists(st.integers(0, 65535), min_size=5, max_size=5), st.sampled_from(["square", "circle", "both"]),
)  # fmt: skip


@given(preset=presets, seed=st.integers(0, 2**70), index=st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_labels_are_in_range_and_intensities_exact_without_noise(preset: SquaresPreset, seed: int, index: int) -> None:
    image, mask = draw_sample(preset, seed, index)
    assert image.shape == (1, preset.side, preset.side)
    present = {0} | {label for label, n in enumerate(preset.shapes_per_class, start=1) if n}
    assert set(np.unique(mask).tolist()) <= present
    np.testing.assert_array_equal(image[0], np.array(preset.mean)[mask])


@given(
    low=st.integers(0, 8),
    width=st.integers(1, 6),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["square", "circle"]),
)
@settings(max_examples=25, deadline=None)
def test_a_shape_that_is_not_clipped_is_2r_plus_1_wide(low: int, width: int, seed: int, kind: str) -> None:
    preset = SquaresPreset("one", 1, 80, (low, low + width), (1,), (0, 9), (0, 0), kind)
    rows, cols = np.nonzero(draw_sample(preset, seed, 0)[1])
    if min(rows.min(), cols.min()) == 0 or max(rows.max(), cols.max()) == 79:
        return
    height, breadth = np.ptp(rows) + 1, np.ptp(cols) + 1
    assert height == breadth
    radius = (height - 1) // 2
    assert height == 2 * radius + 1
    assert low <= radius < low + width
    assert rows.size == (height**2 if kind == "square" else disk(radius).sum())


def test_every_radius_and_every_centre_is_drawn() -> None:
    preset = SquaresPreset("one", 1, 12, (1, 4), (1,), (0, 9), (0, 0))
    radii, centres = set(), set()
    for index in range(3000):
        rows, cols = np.nonzero(draw_sample(preset, 0, index)[1])
        if rows.min() > 0 and cols.min() > 0 and rows.max() < 11 and cols.max() < 11:
            radii.add((np.ptp(rows)) // 2)
        if rows.size == 9:
            centres.add((rows[4], cols[4]))
    assert radii == {1, 2, 3}
    assert centres == {(y, x) for y in range(1, 11) for x in range(1, 11)}


def test_lists_are_stored_as_tuples_and_replace_checks_again() -> None:
    preset = SquaresPreset("yaml", 2, 32, [2, 4], [1], [[1, 2, 3], [4, 5, 6]], [[0, 0, 0], [1, 1, 1]])
    assert preset == replace(preset, mean=((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)))
    assert hash(preset) == hash(replace(preset))
    assert preset.channels == 3
    assert replace(PRESETS["mixed"], side=96).side == 96
    with pytest.raises(ConfigError, match="side is 20"):
        replace(PRESETS["mixed"], side=20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": (0, 0)}, "std: expected 3 entries, .*, got 2"),
        ({"mean": (20000, 25000)}, "std: expected 2 entries, .*, got 3"),
        ({"mean": (20000, 65536, 0)}, r"mean: expected values in \[0, 65535\], .*, got 65536.0 for class 1"),
        ({"mean": (-1, 0, 0)}, "mean: expected .*, got -1.0 for class 0"),
        ({"mean": (float("nan"), 0, 0)}, "mean: .*expected finite numbers"),
        ({"mean": ("grey", 0, 0)}, "mean: .*one number per class"),
        ({"mean": ((1, 2), (3, 4), (5, 6))}, "mean: .*one triple per class"),
        ({"mean": (1, (2, 3, 4), 5)}, "mean: .*one number per class"),
        ({"mean": (1,), "std": (0,), "shapes_per_class": ()}, "mean: expected 2 to 256 classes, .*, got 1"),
        (
            {"mean": [1] * 257, "std": [0] * 257, "shapes_per_class": [1] * 256},
            "mean: expected .* classes, .*, got 257",
        ),
        ({"std": (0, -2, 0)}, "std: expected values of at least 0, got -2.0 for class 1"),
        ({"std": (0, float("inf"), 0)}, "std: .*expected finite numbers"),
        ({"std": ((0, 0, 0),) * 3}, "std: expected mean and std both grey"),
        ({"mean": ((9, 9, 9),) * 3}, "std: expected mean and std both grey"),
        ({"shapes_per_class": (3,)}, "shapes_per_class: expected 2 counts, .* got 1"),
        ({"shapes_per_class": (3, -1)}, "shapes_per_class: expected .*, got -1"),
        ({"shapes_per_class": 3}, "shapes_per_class: expected a list .*, got 3"),
        ({"radius_range": (5, 5)}, r"radius_range: expected .*lowest < upper bound .*, got \[5, 5\]"),
        ({"radius_range": (2, 3, 4)}, "radius_range: expected .*, got"),
        ({"radius_range": (-1, 3)}, "radius_range: expected .*, got -1"),
        ({"radius_range": (2.5, 4)}, "radius_range: expected an integer .*, got 2.5"),
        ({"radius_range": (2, 14)}, "radius_range: the largest shape is 27 pixels wide, side is 24"),
        ({"side": 8}, "largest shape is 9 pixels wide, side is 8"),
        ({"side": 24.0}, "side: expected an integer .*, got 24.0"),
        ({"images": 0}, "images: expected an integer of at least 1, got 0"),
        ({"shape_kind": "star"}, "shape_kind: expected one of square, circle, both, got 'star'"),
    ],
)
def test_a_bad_preset_is_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **change)


def test_a_bad_seed_or_index_is_refused_by_name() -> None:
    for call in (lambda: draw_sample(SMALL, -1, 0), lambda: SquaresDataset(SMALL, -1)):
        with pytest.raises(ConfigError, match="seed: expected .*, got -1"):
            call()
    with pytest.raises(ConfigError, match="index: expected .*, got -3"):
        draw_sample(SMALL, 0, -3)
    with pytest.raises(ConfigError, match=r"index: expected an integer .*, got 1\.5"):
        draw_sample(SMALL, 0, 1.5)
    with pytest.raises(ConfigError, match="indices: expected .*, got -2"):
        SquaresDataset(SMALL, 0, indices=[0, -2])
    with pytest.raises(ConfigError, match="indices: expected .*, got none"):
        SquaresDataset(SMALL, 0, indices=[])
