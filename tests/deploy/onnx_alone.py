"""Runs ONNX files in a process that has numpy and onnxruntime only: `python onnx_alone.py FOLDER`.

FOLDER holds `NAME.onnx` and `NAME.npz` with the inputs in order; the outputs are written as `NAME.out.npy`.
"""

import sys
from pathlib import Path

ALLOWED_NOT = ("torch", "framework", "models", "lightning", "timm", "onnx", "onnxscript", "scipy", "skimage")


class Blocker:
    """Lets nothing else be imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raises ImportError for what a deployment does not have."""
        if name.split(".")[0] in ALLOWED_NOT:
            raise ImportError(f"{name} is not here")


sys.meta_path.insert(0, Blocker())

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

for file in sorted(Path(sys.argv[1]).glob("*.onnx")):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for inputs in sorted(file.parent.glob(f"{file.stem}-*.npz")):
        arrays = np.load(inputs)
        feed = {port.name: arrays[f"arr_{i}"] for i, port in enumerate(session.get_inputs())}
        np.save(inputs.with_suffix(".out.npy"), session.run(None, feed)[0])
assert not [name for name in ALLOWED_NOT if name in sys.modules]
print("ran without torch")
