"""`framework export`: a checkpoint as files that other programs run."""

import argparse
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from framework.deploy.form import Format, Precision
from framework.errors import CheckpointError, ConfigError

#: batches of the data from which int8 takes the ranges of activations
CALIBRATION_BATCHES = 8


def run(args: Sequence[str]) -> int:
    """Exports a checkpoint and prints what came out."""
    parser = argparse.ArgumentParser(
        prog="framework export", description="Inference forms of a checkpoint as files, each run and compared."
    )
    parser.add_argument("--ckpt_path", required=True, help="the checkpoint")
    parser.add_argument("--format", default="pt2", choices=get_args(Format))
    parser.add_argument("--precision", default="fp32", choices=get_args(Precision))
    parser.add_argument(
        "--dynamic", action=argparse.BooleanOptionalAction, default=True, help="any batch, height and width"
    )
    parser.add_argument("--batch", type=int, help="with --no-dynamic: pictures at a time")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="with --no-dynamic: of the pictures")
    parser.add_argument("--calibration", metavar="CONFIG", help="with int8: a configuration with data, by path or name")
    parser.add_argument("--out", type=Path, help="folder of the files; by default `export/FORMAT` in the run folder")
    options = parser.parse_args(list(args))
    from framework.commands.loading import load
    from framework.deploy import export

    path = checkpoint_file(options.ckpt_path)
    module = load(path)
    stored = getattr(module, "preprocessing", None)
    calibration = None if options.calibration is None else inputs_of(data_for(options.calibration, stored))
    out = options.out or default_folder(path, options.format, options.precision)
    report = export(
        module,
        out,
        options.format,
        precision=options.precision,
        dynamic=options.dynamic,
        sizes=_sizes(options),
        calibration=calibration,
    )
    show(report, Console(width=120))
    print(f"written: {out}")
    return 0


def checkpoint_file(given: str) -> Path:
    """The path of `--ckpt_path`.

    Raises:
        CheckpointError: `best` or `last`, which are a configuration's and so of the verbs that are given one.
    """
    if given not in ("best", "last") or Path(given).is_file():
        return Path(given)
    from framework.commands.cli import RUNS

    found = sorted(Path(RUNS).glob(f"**/version_*/checkpoints/{given}.ckpt"), key=lambda path: path.stat().st_mtime)
    hint = found[-1] if found else f"{RUNS}/NAME/version_0/checkpoints/{given}.ckpt"
    raise CheckpointError(
        f"ckpt_path: expected the path of a checkpoint, got {given}, which is looked up for a configuration only; give "
        f"the path, such as {hint}"
    )


def _sizes(options: argparse.Namespace) -> dict[str, int] | None:
    if options.dynamic and (options.batch or options.size):
        raise ConfigError("batch, size: only with --no-dynamic; a dynamic file takes any")
    sizes = {} if options.batch is None else {"batch": options.batch}
    sizes |= {} if options.size is None else dict(zip(("height", "width"), options.size, strict=True))
    return sizes or None


def default_folder(checkpoint: Path, format: str, precision: str) -> Path:
    """`export/FORMAT` or `export/FORMAT-PRECISION` in the run folder (beside a checkpoint that is in none)."""
    folder = checkpoint.absolute().parent
    run = folder.parent if folder.name == "checkpoints" else folder
    return run / "export" / (format if precision == "fp32" else f"{format}-{precision}")


def show(report: dict[str, Any], console: Console) -> None:
    """A table of the files."""
    table = Table(title=f"{report['method']}, {report['format']}, {report['precision']}")
    for name in ("file", "KiB", "largest difference", "share", "eager, ms", "file, ms", "any size of"):
        table.add_column(name, justify="left" if name in ("file", "any size of") else "right")
    for file in report["files"]:
        free = dict.fromkeys(
            axis["name"] for port in file["inputs"] for axis in port["axes"] if "size" not in axis and report["dynamic"]
        )
        share = max(row["share"] for row in file["compared"])
        speed = file.get("speed", {"eager_ms": float("nan"), "file_ms": float("nan")})
        table.add_row(
            file["file"],
            f"{file['bytes'] / 1024:.0f}",
            f"{max(row['largest_difference'] for row in file['compared']):.1e}",
            f"{share:.1e}",
            f"{speed['eager_ms']:.2f}",
            f"{speed['file_ms']:.2f}",
            ", ".join(free) or "none",
        )
    console.print(table)


# ------------------------------------------------------------------------------------------------------------- data


def data_module(config: str) -> Any:
    """The data module of a configuration.

    Args:
        config: a path, or a name as `-c` takes it.

    Raises:
        ConfigError: no such configuration, or one without data.
    """
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.cli import LightningArgumentParser

    from framework.commands.precedence import sections

    importlib.import_module("datamodules")
    data = sections(config, "data")
    if not data:
        raise ConfigError(f"-c {config}: there is no section `data` in it")
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    return parser.instantiate_classes(parser.parse_object({"data": data})).data


def data_for(config: str, stored: Mapping[str, Any] | None = None) -> Any:
    """The data module of a configuration, which reads files as a checkpoint's network was trained to.

    Args:
        config: as `data_module` takes it.
        stored: the checkpoint's preprocessing; None: the configuration's own.
    """
    from framework.preprocessing import hand_to

    data = data_module(config)
    hand_to(data, stored)
    data.prepare_data()
    return data


def batches_of(data: Any) -> Iterator[dict[str, Any]]:
    """The test split in batches as a network gets them, without a Trainer."""
    data.setup("test")
    for batch in data.test_dataloader():
        yield data.on_after_batch_transfer(batch, 0)


def inputs_of(data: Any) -> Iterator[list[np.ndarray]]:
    """A few batches of pictures, as a file takes them, from all over the validation split; none of an empty one."""
    from framework.data import spread

    data.setup("validate")
    loader = data.val_dataloader() or None
    if loader is None:
        return
    dataset, size = loader.dataset, loader.batch_size
    indices = spread(len(dataset), CALIBRATION_BATCHES * size)
    for start in range(0, len(indices), size):
        batch = loader.collate_fn([dataset[i] for i in indices[start : start + size]])
        yield [data.on_after_batch_transfer(batch, 0)["image"].numpy()]
