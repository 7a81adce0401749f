"""A package: the files of a working directory under the hash of their content, one object of the store."""

from __future__ import annotations

import hashlib
import io
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from orchestrator.code.files import CodeFile, collect
from orchestrator.errors import ConfigError, CorruptObject, ObjectExists
from orchestrator.paths import CODE, code_key, code_tombstone, safe_name
from orchestrator.storage import ObjectStore

LARGEST_UNPACKED_BYTES = 1 << 30
"""Of a package that another machine sends."""
_Content = TypeVar("_Content", bytes, str)
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    content_hash: str
    files: tuple[CodeFile, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


def read_package(folder: Path, max_bytes: float) -> Package:
    """What belongs to the package of that folder. Raises ConfigError if it is too much."""
    if not folder.is_dir():
        raise ConfigError(f"workload.code_dir={folder} is not possible: there is no such folder.")
    files = tuple(collect(folder, max_bytes))
    return Package(_hash((file.name, file.executable, _digest(file.path.read_bytes())) for file in files), files)


def keep_package(store: ObjectStore, package: Package) -> bool:
    """Put it into the store, unless it is there. Returns whether it was put. Raises ConfigError if a file changed meanwhile."""
    return not claim(store, package.content_hash) and _keep(store, package.content_hash, archive_of(package))


def is_kept(store: ObjectStore, content_hash: str) -> bool:
    """Whether the store holds the package, and it is not about to be deleted. Changes nothing."""
    return _keys(store, content_hash) == {code_key(content_hash)}


def claim(store: ObjectStore, content_hash: str) -> bool:
    """Whether the store holds the package. Who asks is about to use it: if it was to be deleted (see `garbage`), it is not any more."""
    tombstone = code_tombstone(content_hash)
    found = _keys(store, content_hash)
    if tombstone in found:
        store.delete(tombstone)
        found = _keys(store, content_hash)  # after that: who deletes it looks for the tombstone once more
    return code_key(content_hash) in found


def _keys(store: ObjectStore, content_hash: str) -> set[str]:
    return {info.key for info in store.list(f"{CODE}{safe_name(content_hash)}.")}


def archive_of(package: Package) -> bytes:
    """As a zip file. Raises ConfigError if a file changed meanwhile."""
    archive, content = _archive(package)
    if content != package.content_hash:
        raise ConfigError("the working directory changes while it is packaged: submit again when its files rest.")
    return archive


def keep_archive(store: ObjectStore, content_hash: str, archive: bytes) -> bool:
    """As `keep_package`, of what came from another machine. Raises ConfigError for what is no package, or not the one of that hash."""
    if re.fullmatch(r"[0-9a-f]{64}", content_hash) is None:
        raise ConfigError(f"'{content_hash[:80]}' is no hash of a package: allowed are 64 of 0-9 and a-f.")
    try:
        found = _hash(_entries(archive, content_hash, _digest_of, LARGEST_UNPACKED_BYTES))
    except CorruptObject as error:
        raise ConfigError(f"this is no package: {error}") from error
    if found != content_hash:
        raise ConfigError(f"this package holds other files than its hash {content_hash} says.")
    return not claim(store, content_hash) and _keep(store, content_hash, archive)


def _keep(store: ObjectStore, content_hash: str, archive: bytes) -> bool:
    try:
        store.create(code_key(content_hash), archive)
    except ObjectExists:
        return False  # by another at the same moment; what counts is the content, which is checked where it is unpacked
    return True


def _archive(package: Package) -> tuple[bytes, str]:
    """(zip file, hash of what is in it)."""
    buffer, digests = io.BytesIO(), []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in package.files:
            data = file.path.read_bytes()
            entry = zipfile.ZipInfo(file.name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if file.executable else 0o100644) << 16
            archive.writestr(entry, data)
            digests.append((file.name, file.executable, _digest(data)))
    return buffer.getvalue(), _hash(digests)


def contents_of(archive: bytes, content_hash: str) -> list[tuple[str, bool, bytes]]:
    """(name, executable, content) of each file. Raises CorruptObject if they are not what the hash says."""
    contents = sorted(_entries(archive, content_hash, lambda file: file.read()))
    if _hash((name, executable, _digest(data)) for name, executable, data in contents) != content_hash:
        raise CorruptObject(f"'{code_key(content_hash)}' holds other files than were packaged.")
    return contents


def _entries(
    archive: bytes, content_hash: str, read: Callable[[IO[bytes]], _Content], most_bytes: float = math.inf
) -> Iterator[tuple[str, bool, _Content]]:
    """(name, executable, what `read` makes of the content), one at a time. A name that would lead out of the folder is damage too, and so
    is more than `most_bytes` unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > most_bytes:
                raise CorruptObject(f"'{code_key(content_hash)}' is too large: allowed are {most_bytes:.0f} bytes, unpacked.")
            for entry in packed.infolist():
                parts = PurePosixPath(entry.filename).parts
                if entry.filename.startswith("/") or ".." in parts or not parts:
                    raise CorruptObject(f"'{code_key(content_hash)}' names a file outside its folder: '{entry.filename}'.")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others are unpacked without a bound
                    raise CorruptObject(f"'{code_key(content_hash)}' is packed in a way that no package is: '{entry.filename}'.")
                with packed.open(entry) as file:
                    content = read(file)
                yield entry.filename, bool(entry.external_attr >> 16 & 0o100), content
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise CorruptObject(f"'{code_key(content_hash)}' is damaged: {error}") from error


def _hash(files: Iterable[tuple[str, bool, str]]) -> str:
    """SHA-256 over names, modes and the SHA-256 of contents, in the order of names, whatever the archive's compression makes of them."""
    digest = hashlib.sha256()
    for name, executable, content in sorted(files):
        digest.update(f"{name}\0{int(executable)}\0{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
