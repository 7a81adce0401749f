"""Read a prepared data set: samples by id, and a rank's batches by position."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from orchestrator.data.order import Ids, draws_of, ids_at, rank_slice
from orchestrator.data.shards import Index, Part, Records
from orchestrator.errors import CorruptObject, DataError, ObjectNotFound
from orchestrator.layout import Layout
from orchestrator.paths import DatasetKeys
from orchestrator.storage import DirectoryStore, ObjectStore

Batch = dict[str, torch.Tensor]

_EVAL_SEED = 0  # every job evaluates on the same samples, whatever its own seed


def open_dataset(store: ObjectStore, name: str, content_hash: str, cache_dir: Path) -> Dataset:
    """The data set, every shard checked and memory-mapped: in place in a directory store, else from `cache_dir`.

    Processes of one node may share `cache_dir`: one of them downloads, the others wait for it. Raises DataError for what is
    missing or damaged, naming the object and what was expected and found.
    """
    keys = DatasetKeys(name)
    key = keys.index(content_hash)
    index = Index.from_bytes(_fetch(store, key), f"{store.url}: {key}")
    if index.content_hash != content_hash:
        raise DataError(f"{store.url}: {key} belongs to another data set: expected {content_hash}, found {index.content_hash}.")
    folder = cache_dir / content_hash

    def locate(part: Part) -> Path:
        return _local(store, keys.file(content_hash, part.name), part, folder)

    return Dataset(index, locate)


class Dataset:
    """A prepared data set (`workload.DatasetView`), opened for reading."""

    def __init__(self, index: Index, locate: Callable[[Part], Path]) -> None:
        self._index = index
        self._files = {part.name: locate(part).read_bytes() for part in index.files}
        self._shards = {split: [_map(locate(part), index.dtype) for part in parts] for split, parts in index.splits.items()}
        self._ends = {split: np.cumsum([part.samples for part in parts]) for split, parts in index.splits.items()}

    @property
    def content_hash(self) -> str:
        return self._index.content_hash

    def num_samples(self, split: str) -> int:
        return self._index.num_samples(split)

    def file(self, name: str) -> bytes:
        if name not in self._files:
            raise DataError(f"data set {self.content_hash} has no file '{name}'. It has: {', '.join(self._files) or 'none'}.")
        return self._files[name]

    def gather(self, split: str, ids: Ids) -> Records:
        """The samples `ids`, any shape, of a split as records of the same shape."""
        flat = np.asarray(ids, dtype=np.int64).reshape(-1)
        total = self.num_samples(split)
        if len(flat) and not (flat.min() >= 0 and flat.max() < total):
            raise IndexError(f"split '{split}' has the sample ids 0 to {total - 1}; asked for {flat.min()} to {flat.max()}")
        out = np.empty(flat.shape, dtype=self._index.dtype)
        ends = self._ends[split]
        holder = np.searchsorted(ends, flat, side="right")
        for number in np.unique(holder):
            shard, chosen = self._shards[split][number], holder == number
            out[chosen] = shard[flat[chosen] - (ends[number] - len(shard))]
        return out.reshape(np.shape(ids))


class TrainLoader:
    """One rank's share of the training samples, the same for all that share them: tensor-parallel ranks, stages, ranks of a sequence.

    It holds no state: what it gives is a function of the position.
    """

    def __init__(self, dataset: Dataset, layout: Layout, rank: int, seed: int, num_draws: int = 0) -> None:
        """`num_draws`: with more than 0, batches have a field `draws` of so many random numbers for each sample (`order.draws_of`)."""
        self._dataset = dataset
        self._num_draws = num_draws
        self._layout = layout
        self._share = layout.data_parallel_rank(rank)
        self._total = dataset.num_samples("train")
        self._seed = seed

    def sample_ids(self, position: int, batch_size: int = 0) -> Ids:
        """What this rank trains in the step of `batch_size` samples (0: the layout's) that begins at global `position`.

        int64[accumulation, micro].
        """
        return self._share_of(ids_at(position, self._count(batch_size), self._total, self._seed))

    def micro_batches(self, position: int, batch_size: int = 0) -> Iterator[Batch]:
        """This rank's micro batches of that step."""
        epochs_of_all = (position + np.arange(self._count(batch_size))) // self._total
        for ids, epochs in zip(self.sample_ids(position, batch_size), self._share_of(epochs_of_all), strict=True):
            batch = to_batch(self._dataset.gather("train", ids))
            if self._num_draws:
                batch["draws"] = torch.from_numpy(draws_of(self._seed, epochs, ids, self._num_draws))
            yield batch

    def _count(self, batch_size: int) -> int:
        return batch_size or self._layout.global_batch_size

    def _share_of(self, of_all: Ids) -> Ids:
        return rank_slice(of_all, self._layout.data_parallel_size, self._share, self._layout.micro_batch_size)


def eval_batches(dataset: Dataset, split: str, rank: int, world_size: int, batch_size: int, limit: int = 0) -> Iterator[Batch]:
    """This rank's share of the first `limit` samples (0: all) of a split in an order that no job changes.

    Whole batches are dealt out in turn: over all ranks each sample comes exactly once, the batches are the same at any world
    size, and a rank may get one batch fewer than another, or none.
    """
    total = dataset.num_samples(split)
    count = min(limit or total, total)
    chosen = np.sort(ids_at(0, count, total, _EVAL_SEED)) if count else np.empty(0, dtype=np.int64)
    for start in range(rank * batch_size, count, world_size * batch_size):
        yield to_batch(dataset.gather(split, chosen[start : start + batch_size]))


def to_batch(records: Records) -> Batch:
    """Each field as a tensor [samples, ...]: whole numbers as int64, bytes as uint8, others as float32, truth values as bool."""
    return {name: torch.from_numpy(records[name].astype(_batch_type(records[name].dtype))) for name in records.dtype.names or ()}


def _batch_type(stored: np.dtype[Any]) -> Any:
    return np.uint8 if stored == np.uint8 else _BATCH_TYPES[stored.kind]


_BATCH_TYPES = {"i": np.int64, "u": np.int64, "f": np.float32, "b": np.bool_}


def _map(path: Path, dtype: np.dtype[Any]) -> Records:
    return np.memmap(path, dtype=dtype, mode="r")


def _local(store: ObjectStore, key: str, part: Part, folder: Path) -> Path:
    """A file on this machine that holds `part`, checked."""
    if isinstance(store, DirectoryStore):
        part.check(_read(store.path(key), key), str(store.path(key)))
        return store.path(key)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / part.name
    with _locked(folder / f".{part.name}.lock"):
        if not _is_good(path, part):
            content = _fetch(store, key)
            part.check(content, f"{store.url}: {key}")
            _replace(path, content)
    return path


def _read(path: Path, key: str) -> Any:
    """The file's bytes, mapped; an empty file cannot be mapped."""
    if not path.is_file():
        raise DataError(f"{key} of a prepared data set is missing: expected the file {path}, found none.")
    return np.memmap(path, mode="r") if path.stat().st_size else b""


def _is_good(path: Path, part: Part) -> bool:
    if not path.is_file():
        return False
    try:
        part.check(_read(path, part.name), str(path))
    except DataError:
        return False  # damaged in the cache: what the store holds decides
    return True


def _fetch(store: ObjectStore, key: str) -> bytes:
    try:
        return store.get(key)
    except ObjectNotFound as error:
        raise DataError(f"{key} of a prepared data set is missing in {store.url}.") from error
    except CorruptObject as error:
        raise DataError(f"{key} of a prepared data set is damaged in {store.url}: {error}") from error


def _replace(path: Path, content: bytes) -> None:
    """Write whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system frees it when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
