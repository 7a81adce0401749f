"""The format of a prepared data set: shard files of raw records, and an index that says what they must hold.

A data set has one record type (a packed little-endian structured dtype) and named splits. Below `datasets/<name>/<content hash>/`:

    <split>-<n:05d>      about 32 MiB of records, nothing else: record i stands at byte i * itemsize
    <file name>          what the workload keeps beside them
    INDEX.json.zst       format, dtype, per shard and file its length and CRC-64/NVME, provenance; written last

The content hash is over the record type, the bytes of each split in order, and the files: not over how they are cut into
shards, nor over provenance. Two preparations of the same source give the same hash.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import zstandard
from awscrt.checksums import crc64nvme

from orchestrator.errors import DataError, StorageFull
from orchestrator.paths import safe_name

FORMAT = 1
SHARD_BYTES = 32 * 2**20
REQUIRED_SPLITS = ("train", "validation")
_SPLIT = re.compile(r"[a-z][a-z0-9_]*")

Records = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """An object of a data set: a shard, or a file beside the shards (then without samples)."""

    name: str
    num_bytes: int
    crc64nvme: int
    samples: int = 0

    def check(self, content: Any, where: str) -> None:
        """Raise DataError unless `content` (bytes-like) has the length and the checksum of this part."""
        found_bytes = memoryview(content).nbytes
        if found_bytes != self.num_bytes:
            raise DataError(f"{where} is damaged: expected {self.num_bytes} bytes, found {found_bytes}. {_REMEDY}")
        found = crc64nvme(content)
        if found != self.crc64nvme:
            raise DataError(f"{where} is damaged: expected CRC-64/NVME {self.crc64nvme:016x}, found {found:016x}. {_REMEDY}")


_REMEDY = "Delete the data set's folder in the store to have it prepared again."


@dataclass(frozen=True, kw_only=True)
class Index:
    content_hash: str
    dtype: np.dtype[Any]
    splits: Mapping[str, tuple[Part, ...]]
    files: tuple[Part, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def num_samples(self, split: str) -> int:
        return sum(part.samples for part in self.splits.get(split, ()))

    def to_bytes(self) -> bytes:
        values = {
            "format": FORMAT,
            "content_hash": self.content_hash,
            "dtype": describe(self.dtype),
            "splits": {name: [dataclasses.asdict(part) for part in parts] for name, parts in self.splits.items()},
            "files": [dataclasses.asdict(part) for part in self.files],
            "provenance": dict(self.provenance),
        }
        return zstandard.ZstdCompressor(write_checksum=True).compress(json.dumps(values, sort_keys=True).encode())

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Index:
        """Raises DataError if the bytes are damaged or of a format that this version does not read."""
        try:
            values = json.loads(zstandard.ZstdDecompressor().decompress(content))
        except (zstandard.ZstdError, ValueError) as error:
            raise DataError(f"{where} is damaged: {error}. {_REMEDY}") from error
        if values["format"] != FORMAT:
            raise DataError(f"{where} has format {values['format']}; this version reads format {FORMAT}.")
        return cls(
            content_hash=values["content_hash"],
            dtype=undescribe(values["dtype"]),
            splits={name: tuple(Part(**part) for part in parts) for name, parts in values["splits"].items()},
            files=tuple(Part(**part) for part in values["files"]),
            provenance=values["provenance"],
        )


def describe(dtype: np.dtype[Any]) -> list[list[Any]]:
    """[[field, base type, shape], ...] of a record type; JSON-ready."""
    return [[name, dtype[name].base.str, list(dtype[name].shape)] for name in dtype.names or ()]


def undescribe(fields: list[list[Any]]) -> np.dtype[Any]:
    return np.dtype([(name, base, tuple(shape)) for name, base, shape in fields])


def stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The packed little-endian form of a record type. Raises DataError for one that is no record of numbers."""
    if not dtype.names:
        raise DataError(f"samples must be records with named fields; found an array of {dtype}.")
    for name in dtype.names:
        if dtype[name].base.kind not in "biuf":
            raise DataError(f"field '{name}' of the samples has type {dtype[name]}; allowed are numbers and truth values of a fixed shape.")
    return np.dtype([(name, dtype[name].base.newbyteorder("<"), dtype[name].shape) for name in dtype.names])


class ShardSink:
    """Takes what a workload prepares (`workload.DatasetSink`) and holds it until all is known.

    Records wait in unnamed temporary files, one per split: whatever ends this process, the system takes them back.
    """

    def __init__(self, say: Callable[[str], None], shard_bytes: int = SHARD_BYTES) -> None:
        self._say = say
        self._shard_bytes = shard_bytes
        self._dtype: np.dtype[Any] | None = None
        self._splits: dict[str, _Split] = {}
        self._files: dict[str, bytes] = {}

    def write(self, split: str, records: Records) -> None:
        if not _SPLIT.fullmatch(split):
            raise DataError(f"'{split}' cannot be the name of a split: allowed are a-z, 0-9 and '_'.")
        dtype = stored_dtype(records.dtype)
        if self._dtype is not None and dtype != self._dtype:
            raise DataError(f"samples of split '{split}' are {describe(dtype)}, but earlier ones were {describe(self._dtype)}.")
        self._dtype = dtype
        self._splits.setdefault(split, _Split()).append(np.ascontiguousarray(records, dtype=dtype))

    def add_file(self, name: str, content: bytes) -> None:
        if name in self._files or re.fullmatch(r"INDEX\.json\.zst|[a-z][a-z0-9_]*-\d{5}", name):
            raise DataError(f"the name '{name}' is taken: no second file, shard or index may have it.")
        self._files[safe_name(name)] = bytes(content)

    def progress(self, message: str) -> None:
        self._say(message)

    def index(self, provenance: Mapping[str, Any]) -> Index:
        """What was written. Raises DataError when a split that is needed has no sample."""
        for split in REQUIRED_SPLITS:
            if split not in self._splits or self._splits[split].num_samples == 0:
                found = ", ".join(f"{name}: {held.num_samples}" for name, held in self._splits.items()) or "none"
                raise DataError(f"the source gave no sample for split '{split}' (samples found: {found}).")
        assert self._dtype is not None
        return Index(
            content_hash=self._content_hash(),
            dtype=self._dtype,
            splits={split: tuple(self._shards(split)) for split in sorted(self._splits)},
            files=tuple(Part(name=n, num_bytes=len(c), crc64nvme=crc64nvme(c)) for n, c in sorted(self._files.items())),
            provenance=provenance,
        )

    def objects(self, index: Index) -> Iterator[tuple[str, bytes]]:
        """(name, content) of every file and shard of `index`."""
        yield from sorted(self._files.items())
        for split, parts in index.splits.items():
            for part, content in zip(parts, self._splits[split].pieces(self._piece_bytes()), strict=True):
                yield part.name, content

    def close(self) -> None:
        for split in self._splits.values():
            split.close()

    def _shards(self, split: str) -> Iterator[Part]:
        assert self._dtype is not None
        for number, content in enumerate(self._splits[split].pieces(self._piece_bytes())):
            samples = len(content) // self._dtype.itemsize
            yield Part(name=f"{split}-{number:05d}", num_bytes=len(content), crc64nvme=crc64nvme(content), samples=samples)

    def _piece_bytes(self) -> int:
        """Bytes of a full shard: whole records, at least one."""
        assert self._dtype is not None
        return max(1, self._shard_bytes // self._dtype.itemsize) * self._dtype.itemsize

    def _content_hash(self) -> str:
        assert self._dtype is not None
        splits = {name: held.digest() for name, held in self._splits.items()}
        files = {name: hashlib.blake2b(content, digest_size=32).hexdigest() for name, content in self._files.items()}
        whole = json.dumps([FORMAT, describe(self._dtype), splits, files], sort_keys=True)
        return hashlib.blake2b(whole.encode(), digest_size=20).hexdigest()


class _Split:
    """Records of one split in an unnamed temporary file, and the hash of their bytes."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._hash = hashlib.blake2b(digest_size=32)
        self.num_samples = 0

    def append(self, records: Records) -> None:
        content = records.tobytes()
        with _disk_errors():
            self._file.write(content)
        self._hash.update(content)
        self.num_samples += len(records)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def pieces(self, num_bytes: int) -> Iterator[bytes]:
        with _disk_errors():
            self._file.seek(0)  # flushes what was written
        while content := self._file.read(num_bytes):
            yield content

    def close(self) -> None:
        self._file.close()


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no space left in {folder} while preparing data. Free some, or set TMPDIR to a larger folder.") from error
        raise
