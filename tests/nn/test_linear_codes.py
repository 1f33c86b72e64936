"""Truncated DCT and PCA against scikit-image's and scipy's own, the measured table, and their defining properties."""

import numpy as np
import pytest
from scipy.fft import dctn
from skimage import color, io

from framework.errors import ConfigError
from framework.nn import Pca, dct_top, dct_zonal


def images(count=3, side=8, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, side, side))


def test_all_coefficients_give_the_image_back() -> None:
    x = images()
    np.testing.assert_allclose(dct_zonal(x, 3 * 64), x, atol=1e-5)
    np.testing.assert_allclose(dct_top(x, 3 * 64), x, atol=1e-5)


def test_three_floats_are_the_mean_colour() -> None:
    x = images()
    np.testing.assert_allclose(dct_zonal(x, 3), np.broadcast_to(x.mean((2, 3), keepdims=True), x.shape), atol=1e-5)


def test_the_zone_is_the_lowest_frequencies_split_four_to_one_to_one() -> None:
    said = dct_zonal(0.4 + 0.2 * images(1), 24)
    planes = color.rgb2ycbcr(said[0].transpose(1, 2, 0)).transpose(2, 0, 1)  # scikit-image's scale, same planes
    planes -= np.array([16.0, 128.0, 128.0])[:, None, None]
    kept = [int((np.abs(dctn(p, norm="ortho")) > 1e-3).sum()) for p in planes]
    assert kept == [16, 4, 4]
    assert np.abs(dctn(planes[1], norm="ortho"))[:2, :2].min() > 1e-3


def test_top_keeps_the_largest_coefficients_and_so_beats_the_zone() -> None:
    x = images()
    ycbcr = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    before = dctn(np.einsum("pc,bchw->bphw", ycbcr, x), axes=(2, 3), norm="ortho")
    smooth = 0.5 + 0.05 * (x - 0.5)  # no clipping, so that the kept coefficients can be read off
    after = dctn(np.einsum("pc,bchw->bphw", ycbcr, dct_top(smooth, 20)), axes=(2, 3), norm="ortho")
    for b, a in zip(before, after, strict=True):
        kept = np.abs(a.ravel()) > 1e-6
        assert kept.sum() == 20
        assert set(np.argsort(-np.abs(b.ravel()))[1:15]) <= set(np.flatnonzero(kept))


def test_pca_is_the_truncated_svd_whichever_gram_matrix_is_smaller() -> None:
    for count in (20, 300):
        x = images(count, side=4)
        flat = x.reshape(count, -1)
        mean = flat.mean(0)
        _, _, right = np.linalg.svd(flat - mean, full_matrices=False)
        expected = ((flat - mean) @ right[:5].T @ right[:5] + mean).clip(0, 1).reshape(x.shape)
        np.testing.assert_allclose(Pca(x, 7).reconstruct(x, 5), expected, atol=1e-4)


@pytest.mark.parametrize("count", [20, 300])
@pytest.mark.parametrize("kinds", [1, 3, 6])
def test_no_more_components_are_given_than_the_images_span(count: int, kinds: int) -> None:
    """Of `kinds` different pictures, repeated: numpy's rank of the centred images, and not one component more."""
    x = images(kinds, side=4)[np.arange(count) % kinds]
    flat = x.reshape(count, -1).astype(np.float32).astype(np.float64)
    rank = np.linalg.matrix_rank(flat - flat.mean(0), tol=1e-5)
    assert rank == kinds - 1
    with pytest.raises(
        ConfigError, match=f"floats: expected at most {rank}, .* these {count} images span, got {kinds}"
    ):
        Pca(x, kinds)
    if rank:
        pca = Pca(x, rank)
        np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(rank), atol=1e-5)
        np.testing.assert_allclose(pca.reconstruct(x, rank), x, atol=1e-5)


@pytest.mark.parametrize("count", [40, 300])
def test_small_components_are_exact_too(count: int) -> None:
    """Eigenvalues down to 1e-7 of the largest, which sums of products in float32 would lose."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((192, 6)))[0].T
    x = (0.5 + rng.standard_normal((count, 6)) * np.logspace(0, -3.5, 6) @ directions).reshape(count, 3, 8, 8)
    flat = x.reshape(count, -1)
    _, _, right = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    components = Pca(x, 6).components
    np.testing.assert_allclose(np.abs(components @ right[:6].T), np.eye(6), atol=1e-3)
    with pytest.raises(ConfigError, match="expected at most 6"):
        Pca(x, 7)


def test_kodak_at_256_is_the_measured_table(shared_data) -> None:
    """Section 10: central 256 x 256 of Kodak, 512 floats: 21.21 dB zonal, 22.63 dB top-N (per-image mean)."""
    crops = []
    for path in sorted((shared_data / "kodak").glob("*.png")):
        image = io.imread(path) / 255
        top, left = ((side - 256) // 2 for side in image.shape[:2])
        crops.append(image[top : top + 256, left : left + 256].transpose(2, 0, 1))
    if not crops:
        pytest.skip("no Kodak pictures in the data folder")
    x = np.stack(crops)
    for code, expected in ((dct_zonal, 21.21), (dct_top, 22.63)):
        psnr = -10 * np.log10(((code(x, 512) - x) ** 2).mean((1, 2, 3))).mean()
        assert psnr == pytest.approx(expected, abs=0.35)


@pytest.mark.parametrize("floats", [0, 2, 3 * 64 + 1])
def test_impossible_numbers_of_floats_are_named(floats) -> None:
    with pytest.raises(ConfigError, match="floats: expected 3 to 192"):
        dct_zonal(images(), floats)


def test_bad_images_and_too_many_components_are_named() -> None:
    with pytest.raises(ConfigError, match=r"images: expected \(B, 3, H, W\)"):
        dct_top(np.zeros((2, 1, 8, 8)), 5)
    with pytest.raises(ConfigError, match="3 images of 192 values span at most 2 components, got 5"):
        Pca(images(), 5)
