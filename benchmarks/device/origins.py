"""K-networks beside the plain one of the same shape, 400 x 400: unfolded, folded, frozen (folded while it trains)."""

import copy

import torch

from benchmarks.device.measure import DTYPES, Table
from models.korigins.network import KOriginsUNet


def rows(table: Table, smoke: bool) -> None:
    """KRFL18 and KRFL14 in batches of 3 and 32, and a training step of each."""
    side = 24 if smoke else 400
    for rfl in (8,) if smoke else (18, 14):
        for batch in (1,) if smoke else (3, 32):
            origins = 20000 + 5000 * torch.randn(6, 1)
            k_network = KOriginsUNet(rfl, 1, 3, origins=origins).to(table.device)
            networks = {
                "plain": KOriginsUNet(rfl, 1, 3).to(table.device),
                "unfolded": k_network,
                "folded": k_network.fold(),
                "frozen": KOriginsUNet(rfl, 1, 3, origins=origins, trainable_origins=False).to(table.device),
            }
            networks["unfolded, channels last"] = copy.deepcopy(k_network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            image = 20000 + 5000 * torch.randn(batch, 1, side, side, device=table.device)
            operations = products(networks["plain"], image)
            for dtype in ("fp32", "bf16"):
                for form, network in networks.items():
                    add(table, form, network, image, operations, dtype, f"KRFL{rfl}, batch {batch}, {side} x {side}")


def products(network: torch.nn.Module, image: torch.Tensor) -> float:
    """Operations of the network's convolutions, forward."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def add(
    table: Table,
    form: str,
    network: torch.nn.Module,
    image: torch.Tensor,
    operations: float,
    dtype: str,
    case: str,
) -> None:
    """Rows of the forward pass and, where it trains, of forward and backward."""
    autocast = None if dtype == "fp32" else DTYPES[dtype]

    def forward() -> torch.Tensor:
        with torch.autocast(table.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            return network(image)

    def evaluate() -> None:
        with torch.no_grad():
            forward()

    def train() -> None:
        network.zero_grad()
        forward().float().square().mean().backward()

    least = 2 * image.numel() * 4
    table.add(evaluate, operations, least, dtype, case=case, form=f"{form}, forward")
    if form != "folded":
        table.add(train, 3 * operations, 3 * least, dtype, case=case, form=f"{form}, training")
