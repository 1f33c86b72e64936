"""How much of a device's memory there is, and how it is said."""

from pathlib import Path

import torch

#: of what is free a run plans to use this share: allocators round up and fragment
SHARE = 0.9


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a process could still take on a device; None where the system does not say."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return None
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    info = Path("/proc/meminfo")
    if device.type != "cpu" or not info.exists():
        return None
    lines = [line.split() for line in info.read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable")]
    return 1024 * int(lines[0][1]) if lines else None


def gib(count: float) -> str:
    """Bytes as GiB, for a message."""
    return f"{count / 2**30:.2g} GiB" if count < 10 * 2**30 else f"{count / 2**30:.0f} GiB"
