"""Key filters in trained networks: every bank in place of the depthwise filters, without and with recalibration.

    python -m benchmarks.key_filters_study replacement --network mobilenetv2 --data DATA --out results/NAME.csv
    python -m benchmarks.key_filters_study energy --data DATA --out results/key_filters_energy.csv
    python -m benchmarks.key_filters_study fits --data DATA --out results/key_filters_fits.csv

DATA is the folder that holds `masterkey`, `imagenet_sample_256`, `mobilenetv2_imagenet` and
`mobilenet_edgetpu_imagenet`. Nothing is trained; random banks stand beside every row, with several seeds.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from benchmarks.common import append_row, environment
from callbacks import FilterReplacement
from framework.filters import layer_filters, match_table
from framework.main import main as framework
from framework.nn import BANKS, fit_key_filters, load_filters, make_bank, match_filters
from framework.nn.key_filters import METHODS, published_fits

WEIGHTS = {
    "mobilenetv2": "mobilenetv2_imagenet/mobilenet_v2.fp16.safetensors",
    "mobilenet_edgetpu": "mobilenet_edgetpu_imagenet/mobilenet_edgetpu_100.fp16.safetensors",
}


def replacement(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """`framework test` with the network's own configuration and the banks, or the table that such a test wrote."""
    start = time.perf_counter()
    if args.table is not None:
        yield from replacement_rows(args.network, pd.read_csv(args.table), 0.0)
        return
    cli = framework(
        [
            "test",
            *("-c", f"master_key/{args.network}"),
            f"--data.root={args.data / 'imagenet_sample_256'}",
            f"--model.checkpoint={args.data / WEIGHTS[args.network]}",
            "--trainer.callbacks=FilterReplacement",
            f"--trainer.callbacks.banks=[{', '.join(args.banks)}]",
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
    """The callback's table in rounded figures; the time of the whole run is counted once."""
    for row in table.to_dict("records"):
        shown = {key: f"{row[key]:.2f}" for key in ("top1", "top5", "drop")}
        rounded = {"explained_energy": f"{row['explained_energy']:.3f}", "seconds": f"{seconds:.0f}"}
        yield {"network": network, **{str(k): v for k, v in row.items()}, **shown, **rounded}
        seconds = 0.0


def energy(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Explained energy per bank and kernel size: median over filters, and share per layer averaged over layers."""
    learned = load_filters(args.data / "masterkey" / "mk_filters.npz")
    for network, file in WEIGHTS.items():
        weights = layer_filters(str(args.data / file))
        for size in sorted({f.shape[-1] for f in weights.values()}):
            chosen = {name: f for name, f in weights.items() if f.shape[-1] == size}
            for bank in [*BANKS, "random-1", "random-2"]:
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


def fits(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Our fits beside the published parameters."""
    learned = load_filters(args.data / "masterkey" / "mk_filters.npz")
    for method in METHODS:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["replacement", "energy", "fits"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", choices=list(WEIGHTS), default="mobilenetv2")
    parser.add_argument("--banks", nargs="+", default=[*BANKS, "random-1"])
    parser.add_argument("--table", type=Path, help="a filter_replacement.csv already written, instead of a run")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.unlink(missing_ok=True)
    # before the run, which may change the number of threads
    where = environment()
    for row in {"replacement": replacement, "energy": energy, "fits": fits}[args.part](args):
        append_row(args.out, {**row, **where})


if __name__ == "__main__":
    main()
