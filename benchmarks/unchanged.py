"""What a change of structure must leave alone: parameters, logits and figures, before and after, from one script.

    python -m benchmarks.unchanged --out before.csv      # in a checkout of the old commit, this file beside it
    python -m benchmarks.unchanged --out after.csv
    python -m benchmarks.unchanged --compare before.csv after.csv

Every shipped configuration is built (its parameters are counted and hashed); every quickstart is fitted and tested
(weights hashed, logits of one batch summed, all figures kept).
"""

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from framework.commands.cli import BuildOnly
from framework.configs import config_names
from framework.main import main as framework


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """A hash of names, shapes and exact values of everything that floats."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            total.update(f"{name}:{tuple(value.shape)}".encode())
            total.update(value.detach().double().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def built(name: str) -> dict[str, object]:
    """Parameters of a configuration as it is built."""
    model = BuildOnly(args=["fit", "-c", name]).model
    weights = dict(model.named_parameters())
    return {"config": name, "parameters": sum(p.numel() for p in weights.values()), "initial": digest(weights)}


def fitted(name: str) -> dict[str, object]:
    """Weights, logits and figures of a quickstart."""
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    cli = framework(["fit", "-c", name, *quiet])
    row: dict[str, object] = {"config": name, "fitted": digest(dict(cli.model.named_parameters()))}
    row |= {key: repr(float(value)) for key, value in cli.trainer.callback_metrics.items()}
    cli = framework(["test", "-c", name, "--ckpt_path", "best", *quiet])
    row |= {key: repr(float(value)) for key, value in cli.trainer.callback_metrics.items()}
    with torch.no_grad():
        batch = next(iter(cli.datamodule.test_dataloader()))
        outputs = cli.model.step(batch, "test")
        row |= {f"step/{k}": repr(float(v.double().sum())) for k, v in outputs.items() if isinstance(v, torch.Tensor)}
    return row


def compare(before: Path, after: Path) -> int:
    """Prints every figure that differs; returns how many."""
    old, new = (pd.read_csv(p, dtype=str).set_index(["config", "figure"])["value"] for p in (before, after))
    both = pd.concat({"before": old, "after": new}, axis=1)
    moved = both[both["before"] != both["after"]]
    print(f"{len(both)} figures, {len(moved)} differ")
    if len(moved):
        print(moved.to_string())
    return len(moved)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", type=Path, nargs=2)
    args = parser.parse_args()
    if args.compare:
        sys.exit(1 if compare(*args.compare) else 0)
    torch.set_num_threads(1)
    out = args.out.resolve()
    rows = []
    names = [name for name, _ in config_names()]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in names:
            if "/overlays/" in name or "/studies/" in name or name.startswith("trainer/"):
                continue
            rows += [built(name)]
        rows += [fitted(name) for name, _ in config_names() if name.endswith("quickstart")]
    table = pd.DataFrame(rows).melt("config", var_name="figure", value_name="value").dropna()
    table.sort_values(["config", "figure"]).to_csv(out, index=False)


if __name__ == "__main__":
    main()
