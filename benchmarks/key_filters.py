"""How long fitting and replacing take, and what a depthwise 7x7 layer of operators costs against a plain one.

    python -m benchmarks.key_filters --filters 8Filters.txt --out results/key_filters_speed.csv

Fitting is timed after the imports, all six methods. Replacing is matching the 6,624 filters of a ConvNeXt V2 Tiny to
the bank of Method B and writing a x + b into it, once the network is built. The layers run forward and backward on the
same batch in turn, in one process. The table gives medians, and for the layers the ratio to the plain convolution. Rows
that the file already holds are not measured again.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import append_row, environment, read_rows
from framework.nn import ScaleSpaceDepthwiseConv2d, fit_key_filters, load_filters
from framework.nn.filters.key_filters import METHODS
from models.master_key.method import write_bank
from models.master_key.network import build_network

FIT, REPLACE = "fit, six methods", "replace all filters of ConvNeXt V2 Tiny by Method B"


def fitting(path: str, rounds: int) -> dict[str, object]:
    """Seconds for all six methods on the learned filters."""
    learned = load_filters(path)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for method in METHODS:
            fit_key_filters(learned, method)
        times.append(time.perf_counter() - start)
    return {"work": FIT, "channels": "", "side": "", "batch": "", "ms": 1000 * statistics.median(times)}


def replacing(rounds: int) -> dict[str, object]:
    """Seconds for every depthwise filter of ConvNeXt V2 Tiny, random weights."""
    torch.manual_seed(0)
    network = build_network("convnextv2_tiny")
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        write_bank(network, network, "B")
        times.append(time.perf_counter() - start)
    return {"work": REPLACE, "channels": "", "side": "", "batch": "", "ms": 1000 * statistics.median(times)}


def layers(channels: int, side: int, batch: int, rounds: int) -> list[dict[str, object]]:
    """Forward and backward of the plain layer, the trainable and the frozen layer of operators, and its export."""
    torch.manual_seed(0)
    ours = ScaleSpaceDepthwiseConv2d(channels)
    variants: dict[str, nn.Module] = {
        "plain": nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
        "operators, trainable": ours,
        "operators, frozen": ScaleSpaceDepthwiseConv2d(channels, trainable=False),
        "operators, exported": ours.to_conv(),
    }
    x = torch.randn(batch, channels, side, side, requires_grad=True)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, layer in variants.items():
            layer.zero_grad()
            x.grad = None
            start = time.perf_counter()
            layer(x).sum().backward()
            if turn:
                times[name].append(time.perf_counter() - start)
    shape = {"channels": channels, "side": side, "batch": batch}
    return [{"work": name, **shape, "ms": 1000 * statistics.median(values)} for name, values in times.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--filters", required=True, help="the authors' 8Filters.txt, or an .npz with the array 'learned'"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="CSV file; rows that it holds are not repeated")
    args = parser.parse_args()
    done = {(row["work"], row["channels"], row["batch"]) for row in read_rows(args.out)}
    rows = []
    if (FIT, "", "") not in done:
        rows.append(fitting(args.filters, min(3, args.rounds)))
    if (REPLACE, "", "") not in done:
        rows.append(replacing(args.rounds))
    for channels, side in ((96, 56), (192, 28), (384, 14), (768, 7)):
        if ("plain", str(channels), str(args.batch)) not in done:
            rows += layers(channels, side, args.batch, args.rounds)
    plain = 0.0
    for row in rows:
        plain = float(str(row["ms"])) if row["work"] == "plain" else plain
        ratio = f"{float(str(row['ms'])) / plain:.2f}" if row["channels"] else ""
        row = {**row, "ms": f"{row['ms']:.1f}", "over_plain": ratio, "rounds": args.rounds, **environment()}
        print({k: row[k] for k in ("work", "channels", "side", "ms", "over_plain")}, flush=True)
        append_row(args.out, row)


if __name__ == "__main__":
    main()
