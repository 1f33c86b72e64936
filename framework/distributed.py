"""Everything that knows about ranks: samplers, broadcast, checksum, what is said once.

The contract: a figure is the same on one process and on many. Evaluation loaders therefore never pad, a training epoch
is a permutation drawn from (seed, epoch), and no collective runs inside a step.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DistributedSampler


def is_distributed() -> bool:
    """True inside an initialised process group of more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class EpochIndex(int):
    """A sample's index that also carries its epoch, so that augmentation can be drawn from (seed, epoch, index).

    It is a plain int to every dataset that does not ask, and survives the way to worker processes.
    """

    epoch: int

    def __new__(cls, index: int, epoch: int) -> "EpochIndex":
        self = super().__new__(cls, index)
        self.epoch = epoch
        return self

    def __reduce__(self) -> tuple[type["EpochIndex"], tuple[int, int]]:
        return EpochIndex, (int(self), self.epoch)


class EpochSampler(DistributedSampler):
    """Training order: one permutation per (seed, epoch), dealt out to the ranks, with epochs attached to the indices.

    The ranks get equally many samples (the tail is padded from the start of the permutation), because training steps
    synchronise. Being a DistributedSampler, Lightning keeps it as it is.

    Args:
        dataset: anything with a length.
        num_replicas: number of ranks.
        rank: this rank.
        seed: seed of all permutations.
        shuffle: False keeps the dataset's order.
    """

    def __init__(self, dataset: Sized, num_replicas: int, rank: int, seed: int = 0, shuffle: bool = True) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[EpochIndex]:
        length = len(self.dataset)  # type: ignore[arg-type]
        order = np.arange(length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(length)
        padded = np.resize(order, self.total_size)
        return iter([EpochIndex(int(i), self.epoch) for i in padded[self.rank :: self.num_replicas]])


class UnpaddedDistributedSampler(DistributedSampler):
    """Evaluation order: rank r sees samples r, r + n, r + 2n, ... and no sample twice.

    Torch's own sampler repeats samples until every rank has equally many, which changes the figures.
    """

    def __init__(self, dataset: Sized, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.num_samples = len(range(rank, len(dataset), num_replicas))
        self.total_size = len(dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))

    def __len__(self) -> int:
        return self.num_samples


def add_over_ranks(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Puts the sum over all ranks into every tensor, by way of `device`, which the ranks can exchange from."""
    for tensor in tensors if is_distributed() else ():
        moved = tensor.to(device)
        dist.all_reduce(moved)
        tensor.copy_(moved)


def run_folder(trainer: Trainer) -> Path:
    """The folder of this run, on this rank: `trainer.log_dir` asks all ranks, and must not be read on one alone.

    That of the first logger that has one; else `NAME/VERSION` where the first one saves, as Lightning's checkpoints.
    """
    for logger in trainer.loggers:
        if isinstance(named := getattr(logger, "log_dir", None), str | PathLike) and str(named):
            return Path(named)
    if not trainer.loggers or not isinstance(trainer.loggers[0].save_dir, str | PathLike):
        return Path(trainer.default_root_dir)
    first = trainer.loggers[0]
    version = first.version if isinstance(first.version, str) else f"version_{first.version}"
    return Path(cast(str, first.save_dir), str(first.name), version)


def agreed_run_folder(trainer: Trainer) -> Path:
    """The folder of this run as the first rank names it. A collective."""
    return Path(trainer.strategy.broadcast(str(run_folder(trainer))))


@rank_zero_only
def say(text: str) -> None:
    """Prints a line on the first process only."""
    print(text, flush=True)


def leave() -> None:
    """Ends the process group, if there is one: a process that exits inside it can be aborted by its threads."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def broadcast_tensors(tensors: Iterable[Tensor], source: int = 0) -> None:
    """Overwrites the tensors on every rank with rank `source`'s, in place. Does nothing on one process."""
    if not is_distributed():
        return
    with torch.no_grad():
        for tensor in tensors:
            dist.broadcast(tensor, src=source)


def broadcast_buffers(module: nn.Module) -> None:
    """Makes every buffer (running statistics, maps) rank 0's: once per evaluation, never per step."""
    broadcast_tensors(buffer for buffer in module.buffers())


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, dtypes, shapes and exact values, the same for bitwise equal state only."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def same_on_all_ranks(tensors: Mapping[str, Tensor]) -> bool:
    """True when every rank holds bitwise the same tensors; a collective, so call it on all ranks."""
    if not is_distributed():
        return True
    sums: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(sums, checksum(tensors))
    return len(set(sums)) == 1


def ranks() -> tuple[int, int]:
    """(number of ranks, this rank); (1, 0) outside a process group."""
    return (dist.get_world_size(), dist.get_rank()) if is_distributed() else (1, 0)


def ranks_of(trainer: Trainer | None) -> tuple[int, int]:
    """(number of ranks, this rank) of a Trainer, whose process group may not be there yet; (1, 0) without one."""
    return (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)


def gather_lists(items: list) -> list:
    """The ranks' lists behind one another, plain values only. A collective."""
    if not is_distributed():
        return items
    parts: list[list] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def gather_rows(rows: Tensor, total: int) -> Tensor:
    """Puts rows that ranks own together: rank r's row j becomes row j * ranks + r. A collective.

    Args:
        rows: (rows of this rank, ...).
        total: rows on all ranks together.

    Returns:
        (total, ...) on every rank; `rows` itself on one process.
    """
    if not is_distributed():
        return rows
    world_size = dist.get_world_size()
    padded = rows.new_zeros(-(-total // world_size), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:total]
