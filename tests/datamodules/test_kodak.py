import hashlib
import http.server
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage import io

from datamodules import KodakDataModule
from datamodules import kodak as module
from datamodules.download import download
from datamodules.io import read_rgb
from datamodules.kodak import KODAK_MD5, PHOTOGRAPHS
from framework.errors import ConfigError, DataError
from framework.nn import coordinate_grid
from tests.png import write_png16


def save(path: Path, pixels: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    io.imsave(path, pixels, check_contrast=False)
    return pixels


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def opened(**arguments) -> KodakDataModule:
    data = KodakDataModule(**arguments)
    data.prepare_data()
    data.setup("fit")
    return data


def test_landscape_and_portrait_share_a_batch_and_every_pixel_keeps_its_place(tmp_path: Path) -> None:
    wide, tall = save(tmp_path / "a.png", noise(4, 6)), save(tmp_path / "b.png", noise(6, 4, seed=1))
    data = opened(root=str(tmp_path), images="*.png", steps_per_epoch=3)
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    assert all(b is batches[0] for b in batches)
    assert next(iter(data.val_dataloader())) is batches[0]
    batch = batches[0]
    assert batch["image"].shape == (2, 3, 4, 6)
    assert batch["image"].dtype == batch["coords"].dtype == torch.float32
    assert batch["coords"].shape == (2, 4, 6, 2)
    assert batch["index"].tolist() == [0, 1]
    assert batch["size"].tolist() == data.image_sizes == [[4, 6], [6, 4]]
    assert data.image_names == ["a", "b"]
    assert data.sample_name(1) == "b"
    for b, pixels in enumerate((wide, tall)):
        grid = coordinate_grid(*pixels.shape[:2])
        for y, x in ((0, 0), (1, 5), (3, 2)):
            place = (grid - batch["coords"][b, y, x]).abs().sum(-1).argmin()
            truth = pixels.reshape(-1, 3)[int(place)]
            assert (batch["image"][b, :, y, x] * 255).round().tolist() == truth.tolist()


def test_scale_and_crop_of_either_orientation(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(40, 60))
    tall = save(tmp_path / "b.png", noise(60, 40, seed=1))
    data = opened(root=str(tmp_path), images="*.png", crop=[20, 30])
    assert data.image_sizes == [[20, 30], [30, 20]]
    assert np.array_equal(data.datasets["train"].pixels[1], tall[15:45, 10:30])  # type: ignore[attr-defined]
    half = opened(root=str(tmp_path), images="*.png", scale=0.5)
    assert half.image_sizes == [[20, 30], [30, 20]]
    expected = Image.fromarray(tall).resize((20, 30), Image.Resampling.LANCZOS)
    assert np.array_equal(half.datasets["train"].pixels[1], np.asarray(expected))  # type: ignore[attr-defined]


def test_grids(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(3, 5))
    centre = next(iter(opened(root=str(tmp_path), images="a.png").train_dataloader()))["coords"]
    corner = next(iter(opened(root=str(tmp_path), images="a.png", grid="inclusive").train_dataloader()))["coords"]
    assert centre[0, 0, 0].tolist() == pytest.approx([-2 / 3, -0.8])
    assert corner[0, 0, 0].tolist() == [-1, -1]
    assert corner[0, -1, -1].tolist() == [1, 1]


def test_photographs_of_scikit_image_need_no_file() -> None:
    data = opened(images="scikit-image", scale=0.25, crop=[64, 96])
    assert data.image_names == list(PHOTOGRAPHS)
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, 64, 96)


def test_evaluation_in_smaller_batches_sees_every_image_once(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", noise(4, 6, seed=i))
    data = opened(root=str(tmp_path), images="*.png", eval_batch_size=2)
    assert [b["index"].tolist() for b in data.val_dataloader()] == [[0, 1], [2]]


def test_all_of_kodak(shared_data: Path) -> None:
    data = opened(root=str(shared_data / "kodak"), scale=0.125)
    portraits = [n for n, (h, w) in zip(data.image_names, data.image_sizes, strict=True) if h > w]
    assert portraits == [f"kodim{i:02d}" for i in (4, 9, 10, 17, 18, 19)]
    assert next(iter(data.train_dataloader()))["image"].shape == (24, 3, 64, 96)
    listed = (shared_data / "kodak" / "MD5SUMS.txt").read_text().split()
    assert dict(zip(listed[1::2], listed[::2], strict=True)) == KODAK_MD5


# ---------------------------------------------------------------------- file kinds


def test_grey_and_transparent_pictures(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", noise(4, 6)[..., 0])
    assert np.array_equal(read_rgb(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    rgba = save(tmp_path / "rgba.png", noise(4, 6, 4))
    alpha = rgba[..., 3:] / 255
    assert np.array_equal(read_rgb(tmp_path / "rgba.png"), np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)))
    opaque = noise(4, 6, 4)
    opaque[..., 3] = 255
    save(tmp_path / "opaque.png", opaque)
    assert np.array_equal(read_rgb(tmp_path / "opaque.png"), opaque[..., :3])


@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["grey", "grey and alpha", "rgb", "rgba"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_rounded_to_8(tmp_path: Path, channels: int, suffix: str) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (6, 8, channels), dtype=np.uint16)
    deep[0, 0], deep[0, 1], deep[0, 2] = 65535, 255, 65535 - 255  # cut to their upper 8 bits: 255, 0, 255
    stored = deep[..., 0] if channels == 1 else deep
    if suffix == "png":
        write_png16(tmp_path / "deep.png", stored)
    else:
        alpha = ["unassalpha"] if channels in (2, 4) else None
        kind = "rgb" if channels > 2 else "minisblack"
        tifffile.imwrite(tmp_path / "deep.tif", stored, photometric=kind, planarconfig="contig", extrasamples=alpha)
    values = deep / 257
    if channels in (2, 4):
        alpha = deep[..., -1:] / 65535
        values = values[..., :-1] * alpha + 255 * (1 - alpha)
    expected = np.broadcast_to(np.rint(values), (6, 8, 3))
    if channels == 3:
        assert (expected != deep >> 8).any()
    batch = next(iter(opened(root=str(tmp_path), images=f"deep.{suffix}").train_dataloader()))
    assert torch.equal((batch["image"][0] * 255).round(), torch.from_numpy(expected.copy()).permute(2, 0, 1).float())


def test_a_truncated_16_bit_picture_is_named(tmp_path: Path) -> None:
    write_png16(tmp_path / "whole.png", np.zeros((64, 64, 3), np.uint16))
    data = (tmp_path / "whole.png").read_bytes()
    for name, length in (("body", len(data) // 2), ("header", 26)):
        (tmp_path / f"{name}.png").write_bytes(data[:length])
        with pytest.raises(DataError, match=rf"{name}\.png cannot be read as a picture"):
            opened(root=str(tmp_path), images=f"{name}.png")


# ---------------------------------------------------------------------- bad input


def test_a_partial_kodak_folder_says_which_files_are_missing(tmp_path: Path) -> None:
    for name in KODAK_MD5:
        if name not in ("kodim07.png", "kodim19.png"):
            save(tmp_path / name, noise(4, 6))
    with pytest.raises(DataError, match=r"lacks 2 of the 24 Kodak files: kodim07\.png, kodim19\.png"):
        opened(root=str(tmp_path))


def test_wrong_folders_and_patterns_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.root: there is no folder .*nowhere"):
        opened(root=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="data.root: .* lacks 24 of the 24"):
        opened(root=str(tmp_path))
    with pytest.raises(DataError, match=r"data.images: nothing in .* matches '\*\.jpg'"):
        opened(root=str(tmp_path), images="*.jpg")


def test_a_corrupt_picture_is_named(tmp_path: Path) -> None:
    save(tmp_path / "good.png", noise(64, 64))
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("half", "text"):
        with pytest.raises(DataError, match=rf"{name}\.png cannot be read as a picture"):
            opened(root=str(tmp_path), images=f"{name}.png")


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png", noise(4, 6))
    save(tmp_path / "b" / "x.png", noise(4, 6))
    with pytest.raises(DataError, match=r"a/x\.png and .*b/x\.png have the same name"):
        opened(root=str(tmp_path), images="*/*.png")


def test_pictures_of_several_sizes_are_refused_with_the_crop_that_fits(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(40, 60))
    save(tmp_path / "b.png", noise(50, 30))
    with pytest.raises(DataError, match=r"a 60 x 40, b 50 x 30.*data\.crop: \[30, 50\] fits"):
        opened(root=str(tmp_path), images="*.png")
    assert opened(root=str(tmp_path), images="*.png", crop=[30, 50]).image_sizes == [[30, 50], [50, 30]]
    with pytest.raises(DataError, match="data.crop: a is 40 x 60, too small"):
        opened(root=str(tmp_path), images="*.png", crop=[41, 60])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "data.scale"),
        ({"crop": [3]}, "data.crop"),
        ({"grid": "corner"}, "data.grid"),
        ({"steps_per_epoch": 0}, "data.steps_per_epoch"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KodakDataModule(**arguments)


# ---------------------------------------------------------------------- download


class Server(http.server.BaseHTTPRequestHandler):
    content = bytes(range(256)) * 40
    asked: list[str] = []

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].rstrip("-"))
        type(self).asked.append(f"{self.path} from {start}")
        self.send_response(206 if start else 200)
        self.end_headers()
        self.wfile.write(self.content[start:])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_download_resumes_checks_and_appears_only_when_complete(server: str, tmp_path: Path) -> None:
    right = hashlib.md5(Server.content).hexdigest()
    (tmp_path / "x.png.part").write_bytes(Server.content[:1000])
    download(server + "x.png", tmp_path / "x.png", right)
    assert (tmp_path / "x.png").read_bytes() == Server.content
    assert Server.asked == ["/x.png from 1000"]
    with pytest.raises(DataError, match="expected a file with MD5 0000"):
        download(server + "y.png", tmp_path / "y.png", "0000")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.png"]
    with pytest.raises(DataError, match="download failed .*give data.root"):
        download("http://127.0.0.1:9/z.png", tmp_path / "z.png", right)


def test_a_part_of_another_file_is_replaced(server: str, tmp_path: Path) -> None:
    (tmp_path / "x.png.part").write_bytes(b"something else")
    download(server + "x.png", tmp_path / "x.png", hashlib.md5(Server.content).hexdigest())
    assert (tmp_path / "x.png").read_bytes() == Server.content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.png"]


def _fetch_in_a_process(url: str, path: Path, md5: str) -> None:
    download(url, path, md5)


def test_processes_that_want_one_file_fetch_it_once(server: str, tmp_path: Path) -> None:
    md5 = hashlib.md5(Server.content).hexdigest()
    context = multiprocessing.get_context("fork")
    wanted = (server + "x.png", tmp_path / "x.png", md5)
    processes = [context.Process(target=_fetch_in_a_process, args=wanted) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert Server.asked == ["/x.png from 0"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.png"]


def test_only_missing_files_are_downloaded_and_none_when_a_root_is_given(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    md5 = hashlib.md5(Server.content).hexdigest()
    monkeypatch.setattr(module, "KODAK_URL", server)
    monkeypatch.setattr(module, "KODAK_MD5", {"kodim01.png": md5, "kodim02.png": md5})
    (tmp_path / "data" / "kodak").mkdir(parents=True)
    (tmp_path / "data" / "kodak" / "kodim01.png").write_text("already there")
    KodakDataModule().prepare_data()
    assert Server.asked == ["/kodim02.png from 0"]
    KodakDataModule(root="elsewhere").prepare_data()
    assert len(Server.asked) == 1
