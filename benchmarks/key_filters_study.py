"""Key filters in trained networks: every bank in place of the depthwise filters, without and with recalibration.

    python -m benchmarks.key_filters_study replacement --network mobilenetv2 --data DATA --out results/NAME.csv
    python -m benchmarks.key_filters_study untouched --data DATA --out results/key_filters_untouched.csv
    python -m benchmarks.key_filters_study energy --data DATA --out results/key_filters_energy.csv
    python -m benchmarks.key_filters_study fits --data DATA --out results/key_filters_fits.csv

DATA is the folder that holds `masterkey`, `imagenet_sample_256`, `mobilenetv2_imagenet` and
`mobilenet_edgetpu_imagenet`. Nothing is trained; random banks stand beside every row, with several seeds. Rows that
the file already holds are not computed again, so a study can be extended by more banks or an interrupted one repeated.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from benchmarks.common import append_row, environment, read_rows
from callbacks import FilterReplacement
from framework.commands.filters import layer_filters, match_table
from framework.main import main as framework
from framework.nn import BANKS, fit_key_filters, load_filters, make_bank, match_filters
from framework.nn.filters.key_filters import METHODS, published_fits

WEIGHTS = {
    "mobilenetv2": "mobilenetv2_imagenet/mobilenet_v2.fp16.safetensors",
    "mobilenet_edgetpu": "mobilenet_edgetpu_imagenet/mobilenet_edgetpu_100.fp16.safetensors",
}
#: what the READMEs beside the weights state, on the 936 original pictures: top-1 and top-5 of the untouched network,
#: top-1 with Method B, top-1 with Method B recalibrated
STATED = {"mobilenetv2": ("89.3", "98.4", "4.6", "41.7"), "mobilenet_edgetpu": ("90.8", "98.9", "68.3", "82.8")}
#: how the first row of a central crop is found where the margin is odd
ROUNDINGS: dict[str, Callable[[float], int]] = {"rounded": round, "cut": math.floor}
#: what tells the rows of each part apart
KEYS = {
    "untouched": ("network", "offset"),
    "replacement": ("network", "bank", "recalibrated"),
    "energy": ("network", "size", "bank"),
    "fits": ("method", "filter"),
}


def replacement(args: argparse.Namespace, done: set[tuple[str, ...]]) -> Iterator[dict[str, object]]:
    """`framework test` with the network's own configuration and the banks, or the table that such a test wrote."""
    start = time.perf_counter()
    if args.table is not None:
        yield from replacement_rows(args.network, pd.read_csv(args.table), 0.0)
        return
    banks = [b for b in args.banks if not {(args.network, b, kind) for kind in ("False", "True")} <= done]
    if not banks:
        return
    cli = framework(
        [
            "test",
            *("-c", f"master_key/{args.network}"),
            f"--data.root={args.data / 'imagenet_sample_256'}",
            f"--model.checkpoint={args.data / WEIGHTS[args.network]}",
            "--trainer.callbacks=FilterReplacement",
            f"--trainer.callbacks.banks=[{', '.join(banks)}]",
            "--trainer.callbacks.recalibrate=affine",
            f"--trainer.callbacks.filters_file={args.data / 'masterkey' / 'mk_filters.npz'}",
            "--trainer.enable_progress_bar=false",
            f"--name=key_filters_study/{args.network}",
        ]
    )
    callback = next(c for c in cli.trainer.callbacks if isinstance(c, FilterReplacement))
    if callback.table is not None:
        yield from replacement_rows(args.network, callback.table, time.perf_counter() - start)


def replacement_rows(network: str, table: pd.DataFrame, seconds: float) -> Iterator[dict[str, object]]:
    """The callback's table in rounded figures; the time of the whole run is counted once, on its last row."""
    for number, row in enumerate(table.to_dict("records"), start=1):
        shown = {key: f"{row[key]:.2f}" for key in ("top1", "top5", "drop")}
        took = seconds if number == len(table) else 0.0
        rounded = {"explained_energy": f"{row['explained_energy']:.3f}", "seconds": f"{took:.0f}"}
        yield {"network": network, **{str(k): v for k, v in row.items()}, **shown, **rounded}


def untouched(args: argparse.Namespace, done: set[tuple[str, ...]]) -> Iterator[dict[str, object]]:
    """The networks alone, loaded and fed as their READMEs say, without this project's models and data.

    A picture is cropped to its central 224 x 224; (side - 224) / 2 is not always whole, and rounding it up or down is
    not said.
    """
    files = sorted((args.data / "imagenet_sample_256").glob("*/*.jpg"))
    scored = [(label, file) for label, file in enumerate(files) if label % 15 or label > 945]
    for network in WEIGHTS:
        for offset, whole in ROUNDINGS.items():
            if (network, offset) in done:
                continue
            net = readme_network(network, args.data / WEIGHTS[network])
            hits = [0, 0]
            for start in range(0, len(scored), 18):
                labels, paths = zip(*scored[start : start + 18], strict=True)
                x = torch.stack([central(path, whole) for path in paths])
                with torch.no_grad():
                    right = net((x.float() - 127.5) / 127.5).topk(5, 1).indices == torch.tensor(labels)[:, None]
                hits = [hits[0] + int(right[:, 0].sum()), hits[1] + int(right.any(1).sum())]
            top1, top5 = (f"{100 * hit / len(scored):.2f}" for hit in hits)
            columns = ("stated_top1", "stated_top5", "stated_B", "stated_B_recalibrated")
            stated = dict(zip(columns, STATED[network], strict=True))
            yield {"network": network, "offset": offset, "pictures": len(scored), "top1": top1, "top5": top5, **stated}


def readme_network(name: str, file: Path) -> nn.Module:
    """The lines of the README beside the weights."""
    if name == "mobilenetv2":
        net: Any = torchvision.models.mobilenet_v2()
        for conv in net.modules():
            if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
                conv.padding = (0, 0)
                conv.register_forward_pre_hook(
                    lambda _, args: (F.pad(args[0], (args[0].shape[3] % 2, 1, args[0].shape[2] % 2, 1)),)
                )
    else:
        net = timm.create_model("mobilenet_edgetpu_100", pad_type="same")
        net.blocks[0][0].bn1.act = nn.Identity()
    net.load_state_dict(load_file(file))
    return net.eval()


def central(path: Path, whole: Callable[[float], int], side: int = 224) -> torch.Tensor:
    """The middle of a picture, uint8 (3, side, side)."""
    image = Image.open(path).convert("RGB")
    left, top = (whole((length - side) / 2) for length in image.size)
    return torch.from_numpy(np.array(image.crop((left, top, left + side, top + side)))).permute(2, 0, 1)


def energy(args: argparse.Namespace, done: set[tuple[str, ...]]) -> Iterator[dict[str, object]]:
    """Explained energy per bank and kernel size: median over filters, and share per layer averaged over layers."""
    learned = load_filters(args.data / "masterkey" / "mk_filters.npz")
    for network, file in WEIGHTS.items():
        weights = layer_filters(str(args.data / file))
        for size in sorted({f.shape[-1] for f in weights.values()}):
            chosen = {name: f for name, f in weights.items() if f.shape[-1] == size}
            for bank in [*BANKS, "random-1", "random-2"]:
                if (network, str(size), bank) in done:
                    continue
                rows = match_table(chosen, [bank], learned)
                banks = make_bank(bank, chosen, learned)
                per_filter = torch.cat([match_filters(f, banks[name]).energy for name, f in chosen.items()])
                share = torch.tensor([row["explained"] for row in rows]).nanmean()
                yield {
                    "network": network,
                    "size": size,
                    "filters": int((~per_filter.isnan()).sum()),
                    "bank": bank,
                    "median": f"{float(per_filter.nanmedian()):.3f}",
                    "layers": f"{float(share):.3f}",
                }


def fits(args: argparse.Namespace, done: set[tuple[str, ...]]) -> Iterator[dict[str, object]]:
    """Our fits beside the published parameters."""
    learned = load_filters(args.data / "masterkey" / "mk_filters.npz")
    for method in METHODS:
        if all((method, str(index)) in done for index in range(1, 9)):
            continue
        for fit, known in zip(fit_key_filters(learned, method), published_fits(method), strict=True):
            yield {
                "method": method,
                "filter": fit.index,
                "sigma_x": f"{fit.sigma_x:.6f}",
                "sigma_y": f"{fit.sigma_y:.6f}",
                "alpha": "" if fit.alpha is None else f"{fit.alpha:.6f}",
                "published_sigma_x": f"{known.sigma_x:.4f}",
                "published_sigma_y": f"{known.sigma_y:.4f}",
                "published_alpha": "" if known.alpha is None else f"{known.alpha:.4f}",
                "objective": f"{fit.objective:.5f}",
            }


PARTS = {"replacement": replacement, "untouched": untouched, "energy": energy, "fits": fits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", choices=list(WEIGHTS), default="mobilenetv2")
    parser.add_argument("--banks", nargs="+", default=[*BANKS, *(f"random-{n}" for n in range(1, 5))])
    parser.add_argument("--table", type=Path, help="a filter_replacement.csv already written, instead of a run")
    parser.add_argument("--out", type=Path, required=True, help="CSV file; rows that it holds are not repeated")
    args = parser.parse_args()
    old = {key_of(args.part, row): row for row in read_rows(args.out)}
    # before the run, which may change the number of threads
    where = environment()
    for row in PARTS[args.part](args, set(old)):
        key = key_of(args.part, row)
        if key not in old:
            append_row(args.out, {**row, **where})
        elif args.part == "replacement" and row["bank"] == "original" and row["top1"] != old[key]["top1"]:
            # drops of one table must be drops from one figure
            raise SystemExit(
                f"{args.out} holds {old[key]['top1']} for the untouched {args.network}, this run measured "
                f"{row['top1']}: other data or another machine, so write to another file"
            )


def key_of(part: str, row: Mapping[str, object]) -> tuple[str, ...]:
    """The row's identity in its CSV."""
    return tuple(str(row[name]) for name in KEYS[part])


if __name__ == "__main__":
    main()
