"""A folder as an object store: one file per object, written beside and moved into place."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ulid import ULID

from orchestrator.errors import (
    ConfigError,
    CorruptObject,
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
)
from orchestrator.storage.interface import ObjectInfo
from orchestrator.storage.scattered import Scattered

_UNFINISHED = ".unfinished-"
_MAX_READ_BYTES = 1 << 30
"""Of one system call; Linux gives less than 2 GiB."""
_TRIES = 10
"""Of a write whose folder a delete takes away at the same time."""


class DirectoryStore:
    """Durable (the bytes before the name appears, the name before the call returns) and create-only by `link`, which has exactly one
    winner also on NFS."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"

    def path(self, key: str) -> Path:
        """The file of an object, for memory mapping. ConfigError if the key leaves the store."""
        parts = key.split("/")
        if not key or any(part in ("", ".", "..") or part.startswith(_UNFINISHED) for part in parts):
            raise ConfigError(f"'{key}' is no key of {self.url}: allowed are names joined by '/', without '.' and '..'.")
        return self.root.joinpath(*parts)

    def put(self, key: str, data: bytes | memoryview) -> None:
        with self._explained(key, "write"):
            unfinished = self._write_beside(self.path(key), data)
            unfinished.replace(self.path(key))
            _keep_name(self.path(key))

    def create(self, key: str, data: bytes) -> None:
        path = self.path(key)
        with self._explained(key, "write"):
            unfinished = self._write_beside(path, data)
            try:
                os.link(unfinished, path)
                _keep_name(path)
            except FileExistsError:
                if path.read_bytes() != data:
                    raise ObjectExists(f"'{key}' exists in {self.url} with other content.") from None
            finally:
                unfinished.unlink()

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with self._explained(key, "read"), self.path(key).open("rb") as file:
            file.seek(start)
            data = file.read() if length is None else file.read(length)
        if length is not None and len(data) != length:
            raise CorruptObject(f"'{key}' in {self.url} ends {length - len(data)} bytes early.")
        return data

    def read_into(self, key: str, start: int, *buffers: memoryview) -> None:
        target = Scattered(buffers)
        with self._explained(key, "read"), self.path(key).open("rb", buffering=0) as file:
            while target.missing_bytes:
                count = os.preadv(file.fileno(), target.next(_MAX_READ_BYTES), start + target.filled_bytes)
                if not count:
                    raise CorruptObject(f"'{key}' in {self.url} ends {target.missing_bytes} bytes early.")
                target.advance(count)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        folder = self.root / prefix.rpartition("/")[0]
        found = []
        with self._explained(prefix, "list"):
            for parent, _, names in os.walk(folder):
                for name in names:
                    path = Path(parent, name)
                    key = path.relative_to(self.root).as_posix()
                    if key.startswith(prefix) and not name.startswith(_UNFINISHED):
                        found.append((key, _size(path)))
        return (ObjectInfo(key, size) for key, size in sorted(found) if size >= 0)

    def delete(self, key: str) -> None:
        path = self.path(key)
        with self._explained(key, "delete"):
            path.unlink(missing_ok=True)
        self._remove_empty(path.parent)

    def _remove_empty(self, folder: Path) -> None:
        while folder != self.root and self.root in folder.parents:
            try:
                folder.rmdir()
            except OSError:  # not empty, or another process was quicker: both are the wanted end
                return
            folder = folder.parent

    def _write_beside(self, path: Path, data: bytes | memoryview) -> Path:
        unfinished = path.parent / f"{_UNFINISHED}{ULID()}"
        for _ in range(_TRIES - 1):
            try:
                self._write(unfinished, data)
                return unfinished
            except FileNotFoundError:  # the folder is new, or a delete emptied and removed it just now
                self._make_folder(path.parent)
        self._write(unfinished, data)
        return unfinished

    def _make_folder(self, folder: Path) -> None:
        """And keep the names of all that had to be made; a delete may remove them again at any moment."""
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            for made in reversed(missing):
                _keep_name(made)

    @staticmethod
    def _write(path: Path, data: bytes | memoryview) -> None:
        try:
            with path.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise

    @contextmanager
    def _explained(self, key: str, action: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectNotFound(f"'{key}' is not in {self.url}.") if action == "read" else self._error(key, action, error) from None
        except OSError as error:
            raise self._error(key, action, error) from error

    def _error(self, key: str, action: str, error: OSError) -> StorageError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFull(f"No space left in {self.url} to write '{key}'. Free some, or choose another storage.url.")
        kind = StorageDenied if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else StorageError
        return kind(f"Cannot {action} '{key}' in {self.url}: {error.strerror}.")


def _keep_name(path: Path) -> None:
    """After a power cut the folder still knows `path`."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _size(path: Path) -> int:
    """-1 if it was deleted meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
