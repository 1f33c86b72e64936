"""What is checked of a configuration's values before anything is built."""

import pytest

import datamodules
from framework.commands.values import check_values
from framework.errors import ConfigError


def test_null_is_what_the_nearest_class_says_of_it() -> None:
    def image_size_of(kind: type) -> dict:
        return {"data": {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": {"image_size": None}}}

    check_values(
        image_size_of(datamodules.ImageNetDataModule), ""
    )  # its base, which it calls, takes whole numbers only
    with pytest.raises(ConfigError, match=r"data\.image_size: expected an integer, got null"):
        check_values(image_size_of(datamodules.ImageFolderDataModule), "")
