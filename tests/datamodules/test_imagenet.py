"""Folders of pictures: what is found, how it is split, cropped and numbered, and what is said about broken ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolderDataModule, ImageNetDataModule
from datamodules.image_folder import every_share
from datamodules.imagenet import published_transform, wordnet_ids
from framework.distributed import EpochIndex
from framework.errors import ConfigError, DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def picture(path: Path, color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def tree(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        for i in range(count):
            picture(root / name / f"{i:03d}.png", (i, 0, 0))
    return root


def test_classes_are_the_sorted_folders_and_keys_are_image_label_index(tmp_path: Path) -> None:
    data = ImageFolderDataModule(str(tree(tmp_path, {"b": 2, "a": 3})), image_size=8, val_fraction=1.0)
    dataset = data.configure_dataset("test")
    assert data.class_names == ["a", "b"]
    assert [int(dataset[i]["label"]) for i in range(5)] == [0, 0, 0, 1, 1]  # type: ignore[arg-type]
    sample = dataset[4]
    assert set(sample) == {"image", "label", "index"}
    assert sample["image"].shape == (3, 8, 8)
    assert sample["image"].dtype == torch.float32
    assert int(sample["index"]) == 4
    assert sample["image"][0, 0, 0] == torch.tensor(1 / 255)


def test_flat_folder_has_no_label_and_its_pictures_stay_in_unit_range(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / f"{i}.png", (255, 0, 51))
    data = ImageFolderDataModule(str(tmp_path), image_size=8, val_fraction=0)
    sample = data.configure_dataset("train")[EpochIndex(2, 0)]
    assert set(sample) == {"image", "index"}
    torch.testing.assert_close(sample["image"][:, 4, 4], torch.tensor([1.0, 0.0, 0.2]))


def test_training_without_validation(tmp_path: Path) -> None:
    data = ImageFolderDataModule(str(tree(tmp_path, {"a": 3, "b": 2})), image_size=8, val_fraction=0)
    data.setup("fit")
    assert len(data.datasets["train"]) == 5  # type: ignore[arg-type]
    assert data.val_dataloader() == []
    with pytest.raises(ConfigError, match="the val split is empty"):
        data.setup("validate")


def test_evaluation_is_resize_then_centre_crop_of_torchvision(tmp_path: Path) -> None:
    from torchvision import transforms as T

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.5]
    reference = T.Compose(
        [
            T.Resize(24, interpolation=T.InterpolationMode.BICUBIC, antialias=True),
            T.CenterCrop(20),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )(Image.open(tmp_path / "x.png"))
    data = ImageFolderDataModule(str(tmp_path), image_size=20, resize=24, mean=mean, std=std, val_fraction=1)
    torch.testing.assert_close(data.configure_dataset("val")[0]["image"], reference, rtol=0, atol=1e-6)


def test_an_even_share_is_every_nth_from_the_first() -> None:
    assert every_share(100, 0.1) == list(range(0, 100, 10))
    assert every_share(7, 1) == list(range(7))
    assert every_share(7, 0) == []
    assert len(every_share(10, 0.25)) == 3


def test_train_and_validation_of_one_tree_share_nothing(tmp_path: Path) -> None:
    data = ImageFolderDataModule(str(tree(tmp_path, {"a": 7, "b": 8})), image_size=8, val_fraction=0.2)
    train, val = (set(data.configure_dataset(s).positions) for s in ("train", "val"))  # type: ignore[attr-defined, arg-type]
    assert val == {0, 5, 10}
    assert train | val == set(range(15))
    assert not train & val


def test_split_file_decides_where_there_is_one(tmp_path: Path) -> None:
    tree(tmp_path, {"a": 2, "b": 1})
    (tmp_path / "split.csv").write_text(
        "path,class,split\nb/000.png,b,train\na/000.png,a,val\na/001.png,a,train\n", encoding="utf-8"
    )
    data = ImageFolderDataModule(str(tmp_path), image_size=8, split_file="split.csv")
    assert [int(data.configure_dataset("train")[i]["label"]) for i in (0, 1)] == [0, 1]
    assert len(data.configure_dataset("val")) == 1  # type: ignore[arg-type]


def test_subsets_keep_labels_and_indices(tmp_path: Path) -> None:
    root = str(tree(tmp_path, {"a": 3, "b": 3, "c": 3}))
    data = ImageFolderDataModule(root, image_size=8, val_fraction=1, classes=["c", "a"], images_per_class=2)
    samples = [data.configure_dataset("val")[i] for i in range(4)]
    assert [int(s["label"]) for s in samples] == [0, 0, 2, 2]
    assert [int(s["index"]) for s in samples] == [0, 1, 6, 7]


def test_calibration_pictures_leave_the_evaluation(tmp_path: Path) -> None:
    root = str(tree(tmp_path, {f"{c:02d}": 1 for c in range(20)}))
    data = ImageFolderDataModule(root, image_size=8, val_fraction=1, calibration_images=3, calibration_step=5)
    assert list(data.calibration_dataset().positions) == [0, 5, 10]  # type: ignore[attr-defined]
    assert len(data.configure_dataset("test")) == 17  # type: ignore[arg-type]


def test_calibration_pictures_come_from_training_where_there_is_some(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"a": 4, "b": 4})
    tree(tmp_path / "val", {"a": 2, "b": 2})
    data = ImageFolderDataModule(str(tmp_path), image_size=8, calibration_images=4)
    assert list(data.calibration_dataset().positions) == [0, 2, 4, 6]  # type: ignore[attr-defined]
    assert len(data.configure_dataset("test")) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("crop", ["random_resized", "random", "center"])
def test_augmentation_is_a_function_of_seed_epoch_and_index(tmp_path: Path, crop: str) -> None:
    rng = np.random.default_rng(1)
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    options = {"auto_augment": "rand-m9-mstd0.5-inc1", "erase": 1.0, "resize": 24, "train_crop": crop}
    first, second, other = (
        ImageFolderDataModule(str(tmp_path), image_size=16, val_fraction=0, seed=s, **options).configure_dataset(
            "train"
        )  # type: ignore[arg-type]
        for s in (0, 0, 1)
    )
    torch.manual_seed(0)
    a = first[EpochIndex(1, 3)]["image"]
    np.random.seed(5)  # noqa: NPY002
    assert torch.equal(a, second[EpochIndex(1, 3)]["image"])
    assert not torch.equal(a, second[EpochIndex(1, 4)]["image"])
    assert not torch.equal(a, other[EpochIndex(1, 3)]["image"])
    assert a.shape == (3, 16, 16)


def test_broken_files_and_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"\x89PNG nothing")
    data = ImageFolderDataModule(str(tmp_path), image_size=8, val_fraction=1)
    with pytest.raises(DataError, match=r"a/x\.png cannot be read as a picture"):
        data.configure_dataset("val")[0]
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"1 of the 2 class folders of .* hold no picture: b"):
        ImageFolderDataModule(str(tmp_path), val_fraction=1).parts()
    with pytest.raises(DataError, match="there is no folder"):
        ImageFolderDataModule(str(tmp_path / "none")).parts()
    with pytest.raises(DataError, match="holds no picture"):
        ImageFolderDataModule(str(tmp_path / "b"), val_fraction=1).parts()
    with pytest.raises(DataError, match=r"no folder train, val or test .* data\.val_fraction or data\.split_file"):
        ImageFolderDataModule(str(tmp_path)).parts()


def test_different_classes_in_train_and_val_are_named(tmp_path: Path) -> None:
    tree(tmp_path / "train", {"a": 1, "b": 1})
    tree(tmp_path / "val", {"a": 1, "c": 1})
    with pytest.raises(DataError, match=r"1 missing \(b\), 1 more \(c\)"):
        ImageFolderDataModule(str(tmp_path)).parts()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 10, "image_size": 12}, r"data\.image_size and data\.resize"),
        ({"mean": [0.1]}, r"data\.mean: expected three numbers"),
        ({"std": [0.1, 0, 1]}, r"data\.std: expected three numbers above 0"),
        ({"scale": [0.5, 0.2]}, r"data\.scale"),
        ({"split_file": "x", "val_fraction": 0.1}, "give one of the two"),
        ({"images_per_class": 0}, r"data\.images_per_class"),
        ({"val_fraction": 2}, r"data\.val_fraction"),
    ],
)
def test_values_that_cannot_work_are_named(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageFolderDataModule("x", **options)


# ---------------------------------------------------------------------------------------------------------- ImageNet


def test_imagenet_names_the_missing_classes(tmp_path: Path) -> None:
    tree(tmp_path, {"n01440764": 1, "n01443537": 1})
    with pytest.raises(DataError, match=r"lacks 998 of the 1000 classes: n01484850.*data\.partial"):
        ImageNetDataModule(str(tmp_path), val_fraction=1).parts()


def test_a_partial_imagenet_keeps_the_thousand_labels(tmp_path: Path) -> None:
    order = wordnet_ids()
    assert len(order) == 1000
    assert order == sorted(order)
    tree(tmp_path, {order[3]: 1, order[998]: 1})
    data = ImageNetDataModule(str(tmp_path), val_fraction=1, partial=True)
    assert [int(data.configure_dataset("val")[i]["label"]) for i in (0, 1)] == [3, 998]


def test_half_unpacked_imagenet_says_what_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not ImageNet-1k classes: cat"):
        ImageNetDataModule(str(tree(tmp_path / "other", {"cat": 1})), val_fraction=1).parts()
    outer = tmp_path / "outer"
    tree(outer / "val", {"n01440764": 1})
    (outer / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train\.tar but no folder train"):
        ImageNetDataModule(str(outer)).parts()
    inner = tmp_path / "inner"
    (inner / "train").mkdir(parents=True)
    (inner / "train" / "n01440764.tar").touch()
    with pytest.raises(DataError, match="still holds 1 class archives"):
        ImageNetDataModule(str(inner)).parts()
    flat = tmp_path / "flat"
    picture(flat / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="unsorted validation pictures"):
        ImageNetDataModule(str(flat)).parts()


def test_published_transform_of_a_model_and_values_over_it(tmp_path: Path) -> None:
    known = published_transform("convnextv2_tiny.fcmae_ft_in1k")
    assert known["image_size"] == 224
    assert known["interpolation"] == "bicubic"
    data = ImageNetDataModule(str(tmp_path), published="convnextv2_tiny.fcmae_ft_in1k", resize=300)
    assert (data.eval_transform.size, data.eval_transform.resize) == (224, 300)
    assert ImageNetDataModule(str(tmp_path)).eval_transform.resize == 256
    with pytest.raises(ConfigError, match=r"no model 'convnextv2_tinny'"):
        published_transform("convnextv2_tinny")


def test_the_sample_is_in_class_order() -> None:
    root = SHARED / "imagenet_sample_256"
    if not root.is_dir():
        pytest.skip(f"needs {root}")
    data = ImageNetDataModule(str(root), val_fraction=1, calibration_images=64, calibration_step=15)
    test = data.configure_dataset("test")
    assert len(test) == 936  # type: ignore[arg-type]
    assert [int(test[0]["label"]), int(test[0]["index"])] == [1, 1]
    assert list(data.calibration_dataset().positions) == list(range(0, 946, 15))  # type: ignore[attr-defined]
