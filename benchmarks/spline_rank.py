"""Edges that share R shapes from the start of training, beside shapes cut out of a network trained without sharing.

    framework fit -c kmunet/dsb2018 -c kmunet/overlays/reduced -c kmunet/overlays/rank2 --data.root DIR \\
        --model.optimizer.init_args.lr 0.01
    python -m benchmarks.spline_rank --ckpt_path last --data DIR --out results/spline_rank.csv

Dice of the test pictures, of the network as it was trained and in its forms for inference, and what it is beside the
network without sharing, of `results/spline_forms.csv`, which was trained by the same command without the last overlay.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.common import append_row, environment, read_rows
from benchmarks.spline_forms import BATCHES, dice, trained
from framework.nn import spline_form, spline_layers
from framework.nn.splines.forms import FormKind

RESULTS = Path(__file__).parents[1] / "results"
FORMS: tuple[FormKind | None, ...] = (None, "low_rank", "low_rank_int8")


def main() -> None:
    """Scores the network in every form and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", default="last", help="of the network trained as above")
    parser.add_argument("--overlay", default="rank2", help="that it was trained with")
    parser.add_argument("--data", default="data/dsb2018_nuclei", help="folder of the nuclei")
    parser.add_argument("--out", type=Path, required=True, help="CSV file, written anew")
    args = parser.parse_args()
    torch.set_num_threads(1)
    network, pictures, batches, metrics = trained(args.ckpt_path, args.data, ("reduced", args.overlay))
    layers = spline_layers(network).values()
    (rank,) = {layer.rank for layer in layers}
    (without,) = (float(row["dice"]) for row in read_rows(RESULTS / "spline_forms.csv") if row["form"] == "exact")
    numbers = sum(layer.live_parameters() for layer in layers)
    args.out.unlink(missing_ok=True)
    for kind in FORMS:
        form = network if kind is None else spline_form(network, kind, rank=rank, data=pictures[:BATCHES])
        said = dice(form, batches, metrics())
        row: dict[str, object] = {
            "form": kind or "as trained",
            "rank": rank,
            "spline_parameters": numbers,
            "dice": round(said, 4),
        }
        row |= {"dice_change": round(said - without, 4), **environment()}
        append_row(args.out, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
