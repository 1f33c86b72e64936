"""Times and memory of one exported file, in a process that imports nothing that the file does not need.

Run by its path: `python worker.py FILE FOLDER THREADS SECONDS`, where FOLDER holds `one.npz` and `many.npz`, inputs of
a single sample and of a batch; the last line printed is JSON. `framework.deploy.measuring` starts it.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MIB = 2**20


def milliseconds(work: Callable[[], object], seconds: float = 0.3, most: int = 30) -> tuple[float, float]:
    """Median time of a call, after one that is not counted: on the wall's clock, and of this process's processors.

    The second does not grow with what else the machine is doing; with one thread the two are equal on a quiet one.
    """
    work()
    wall: list[float] = []
    own: list[float] = []
    end = time.perf_counter() + seconds
    while len(wall) < 3 or (time.perf_counter() < end and len(wall) < most):
        start, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        own.append(time.process_time() - used)
    return 1000 * statistics.median(wall), 1000 * statistics.median(own)


def _opened(path: str, threads: int) -> tuple[Callable[..., Any], int]:
    """The file as a function of arrays, and what the process held when its runtime was there and the file was not."""
    if path.endswith(".onnx"):
        import onnxruntime

        before = _peak()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [port.name for port in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True))), before
    import torch

    torch.set_num_threads(threads)
    before = _peak()
    # written by the process that starts this one, and looked at there
    program: Any = torch.jit.load(path) if path.endswith(".ts") else torch.export.load(path).module()

    def run(*arrays: np.ndarray) -> object:
        with torch.no_grad():
            return program(*map(torch.from_numpy, arrays))

    return run, before


def _peak() -> int:
    """Bytes that this process held at most; Linux's resource usage would begin with those of the process it is from."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _main(path: str, folder: str, threads: str, seconds: str) -> None:
    inputs = {}
    for name in ("one", "many"):
        arrays = np.load(Path(folder, f"{name}.npz"))
        inputs[name] = [arrays[key] for key in arrays.files]
    run, before = _opened(path, int(threads))
    latency, cpu = milliseconds(lambda: run(*inputs["one"]), float(seconds))
    whole, _ = milliseconds(lambda: run(*inputs["many"]), float(seconds))
    rows = len(inputs["many"][0])
    found = {"latency_ms": latency, "cpu_ms": cpu, "per_second": 1000 * rows / whole}
    found["memory_mib"] = (_peak() - before) / MIB
    print(json.dumps({key: round(value, 3) for key, value in found.items()}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
