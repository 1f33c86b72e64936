"""Where the samples of a test stand in its dataset, and the pictures that the network saw of them."""

from collections.abc import Mapping, Sequence, Sized
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset, SequentialSampler

from framework.compat import handed_over
from framework.distributed import EpochSampler, UnpaddedDistributedSampler, is_distributed

#: samplers that give the same order again, as long as they do not shuffle
_KNOWN = (SequentialSampler, DistributedSampler, UnpaddedDistributedSampler, EpochSampler)


def known_places(trainer: Trainer) -> list[int]:
    """Where in the dataset this process's samples stand, in the order of its batches; none where that is not known."""
    batches = getattr(_only_loader(trainer), "batch_sampler", None)
    sampler: Any = getattr(batches, "sampler", None)
    if type(batches) is not BatchSampler or type(sampler) not in _KNOWN or getattr(sampler, "shuffle", False):
        return []
    return [int(place) for place in sampler]


def place_samples(samples: Sequence[dict[str, Any]], places: Sequence[int]) -> None:
    """Writes under `place` where each sample stands, or None, and under `index` None for what is no index."""
    for number, sample in enumerate(samples):
        sample["place"] = places[number] if number < len(places) else None
        if not isinstance(sample.get("index"), int):
            sample["index"] = None


def once_each(trainer: Trainer, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that a padding sampler has given to several processes."""
    if not is_distributed() or _only_loader(trainer) is None:
        return list(samples)
    seen: set[tuple[str, int]] = set()
    kept = []
    for sample in samples:
        named = next(((key, sample[key]) for key in ("index", "place") if sample[key] is not None), None)
        if named is None or named not in seen:
            kept.append(sample)
        if named is not None:
            seen.add(named)
    return kept


def in_order(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By their places, else by their indices, else as they were tested."""
    for key in ("place", "index"):
        if all(sample[key] is not None for sample in samples):
            return sorted(samples, key=lambda sample: sample[key])
    return list(samples)


def pictures_of(trainer: Trainer, samples: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The samples as the network saw them: read again, and through all that a batch goes through.

    Returns:
        for each what a batch of it alone holds, without the batch's axis; None where it cannot be found again.
    """
    loader = _only_loader(trainer)
    dataset: Any = getattr(loader, "dataset", None)
    single = getattr(loader, "batch_sampler", None) is not None and not isinstance(dataset, IterableDataset)
    if not single or not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        return [None] * len(samples)
    found = [None if one is None else handed_over(trainer, loader.collate_fn([one])) for one in _read(dataset, samples)]
    return [None if batch is None else _alone(batch) for batch in found]


def _only_loader(trainer: Trainer) -> Any:
    loaders: Any = trainer.test_dataloaders
    if isinstance(loaders, list | tuple):
        return loaders[0] if len(loaders) == 1 else None
    return loaders


def _read(dataset: Any, samples: Sequence[Mapping[str, Any]]) -> list[Any]:
    found = [_guess(dataset, sample) for sample in samples]
    missing = {s["index"]: i for i, s in enumerate(samples) if found[i] is None and s["index"] is not None}
    for place in range(len(dataset)) if missing else ():
        one = dataset[place]
        number = missing.pop(_index(one), None)
        if number is not None:
            found[number] = one
        if not missing or _index(one) is None:
            break
    return found


def _guess(dataset: Any, sample: Mapping[str, Any]) -> Any:
    """Without looking through the dataset: at its place, or at its index, where most stand."""
    place, index = sample["place"], sample["index"]
    if place is not None:
        one = dataset[place]
        if index is None or _index(one) in (None, index):
            return one
    if index is not None and 0 <= index < len(dataset):
        one = dataset[index]
        if _index(one) == index:
            return one
    return None


def _index(sample: Any) -> int | None:
    index = sample.get("index") if isinstance(sample, Mapping) else None
    return int(index) if isinstance(index, int) or (isinstance(index, Tensor) and index.numel() == 1) else None


def _alone(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {key: _alone(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple) and all(isinstance(value, Tensor | Mapping) and len(value) for value in batch):
        return [_alone(value) for value in batch] if len(batch) > 1 else _first(batch)
    return _first(batch)


def _first(value: Any) -> Any:
    alone = isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.ndim > 0)
    return value[0] if alone and len(value) == 1 else value
