"""First-order speed of the layers beside an older revision of them, by turns in one run.

    python -m benchmarks.second_derivatives_speed --before 979e5e7 --out results/second_derivatives_speed.csv

The older revision is taken out of git into a folder of its own. Both are loaded by processes that wait for their turn;
a turn is a few forward and backward passes of one layer, and a round is a turn of both, in an order that changes.
A row is the median over the rounds of the ratio of their processor times, and the quartiles.
"""

import argparse
import io
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: the allocator keeps what it was given: whether it maps a block anew depends on what came before, not on the layer
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
NAMES = [
    "KANLinear", "KANLinear silu", "KANConv2d", "KANConv2d silu", "KANConv2d recompute", "SineLayer",
    "ExpertLinear", "Finola",
]  # fmt: skip


def step_of(name: str) -> Callable[[], Any]:
    """A forward and backward pass of a layer of the revision that this process has loaded."""
    import torch

    from framework.nn import ExpertLinear, Finola, KANConv2d, KANLinear, SineLayer, nested_sort

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer: Any
    base: Any = "silu" if name.endswith("silu") else None
    if name.startswith("KANLinear"):
        layer, x = KANLinear(64, 64, base=base), torch.randn(1024, 64)
    elif name.startswith("KANConv2d"):
        way: Any = "recompute" if name.endswith("recompute") else "auto"
        layer, x = KANConv2d(16, 16, 3, padding=1, base=base, implementation=way), torch.randn(2, 16, 32, 32)
    elif name == "SineLayer":
        layer, x = SineLayer(64, 64), torch.randn(4096, 64)
    elif name == "ExpertLinear":
        layer, x = ExpertLinear(64, 64, 4), torch.randn(4096, 64)
    else:
        layer, x = Finola(32), torch.randn(4, 32)
    x.requires_grad_()
    segments = nested_sort([torch.arange(4096) // 64 % 4]).segments[0]

    def call() -> Any:
        if name == "Finola":
            return layer(x, (12, 12))
        return layer(x, segments=segments) if name == "ExpertLinear" else layer(x)

    def step() -> None:
        x.grad = None
        for parameter in layer.parameters():
            parameter.grad = None
        call().sum().backward()

    return step


def serve() -> None:
    """Answers `name repeats` on standard input with processor seconds of so many steps."""
    steps: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        name, _, repeats = line.strip().rpartition(" ")
        if name not in steps:
            steps[name] = step_of(name)
            steps[name]()
        start = time.process_time()
        for _ in range(int(repeats)):
            steps[name]()
        print(time.process_time() - start, flush=True)


class Server:
    """A revision's process."""

    def __init__(self, folder: Path) -> None:
        folders = [str(folder), str(ROOT)]  # the packages of the revision, this program
        code = f"import sys; sys.path[:0] = {folders!r}; from benchmarks.{Path(__file__).stem} import serve; serve()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | ALLOCATOR,
        )

    def seconds(self, name: str, repeats: int) -> float:
        """Processor seconds of so many steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name} {repeats}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def extracted(revision: str, folder: Path) -> Path:
    """The packages of a revision, in a folder."""
    packed = subprocess.run(["git", "archive", revision, "framework"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def main() -> None:
    """Measures everything and writes the table."""
    from benchmarks.common import append_row, environment  # of this revision; the older one may lack what they need

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the older revision")
    parser.add_argument("--out", default="results/second_derivatives_speed.csv")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--milliseconds", type=float, default=30.0, help="of a turn")
    parser.add_argument("--layers", nargs="*", default=NAMES)
    args = parser.parse_args()
    Path(args.out).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Server(extracted(args.before, Path(folder))), Server(ROOT)
        for name in args.layers:
            repeats = max(1, round(args.milliseconds / 1000 / max(after.seconds(name, 2) / 2, 1e-5)))
            before.seconds(name, repeats), after.seconds(name, repeats)
            pairs: list[tuple[float, float]] = []
            for _ in range(args.rounds):
                taken = {}
                for server in random.Random(len(pairs)).sample([before, after], 2):
                    taken[server] = server.seconds(name, repeats) / repeats
                pairs.append((taken[before], taken[after]))
            ratios = [b / a for a, b in pairs]
            low, middle, high = statistics.quantiles(ratios, n=4)
            row = {
                "layer": name,
                "before": args.before,
                "before_ms": round(1000 * statistics.median(a for a, _ in pairs), 3),
                "after_ms": round(1000 * statistics.median(b for _, b in pairs), 3),
                "ratio": round(middle, 3),
                "lower_quartile": round(low, 3),
                "upper_quartile": round(high, 3),
                "ratio_of_least": round(min(b for _, b in pairs) / min(a for a, _ in pairs), 3),
                "rounds": args.rounds,
            }
            append_row(Path(args.out), {**row, **environment()})
            print(row, flush=True)
        for server in (before, after):
            server.process.terminate()


if __name__ == "__main__":
    main()
