"""A package: the files of a working directory under the hash of their content, one object of the store."""

from __future__ import annotations

import fcntl
import hashlib
import io
import math
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.code.files import CodeFile, collect
from orchestrator.errors import ConfigError, CorruptObject, ObjectExists
from orchestrator.paths import code_key
from orchestrator.storage import ObjectStore

LARGEST_UNPACKED_BYTES = 1 << 30
"""Of a package that another machine sends."""
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
    return Package(_hash((file.name, file.executable, file.path.read_bytes()) for file in files), files)


def keep_package(store: ObjectStore, package: Package) -> bool:
    """Put it into the store, unless it is there. Returns whether it was put. Raises ConfigError if a file changed meanwhile."""
    return not is_kept(store, package.content_hash) and _keep(store, package.content_hash, archive_of(package))


def is_kept(store: ObjectStore, content_hash: str) -> bool:
    key = code_key(content_hash)
    return any(info.key == key for info in store.list(key))


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
        found = _hash(sorted(_entries(archive, content_hash, LARGEST_UNPACKED_BYTES)))
    except CorruptObject as error:
        raise ConfigError(f"this is no package: {error}") from error
    if found != content_hash:
        raise ConfigError(f"this package holds other files than its hash {content_hash} says.")
    return _keep(store, content_hash, archive)


def _keep(store: ObjectStore, content_hash: str, archive: bytes) -> bool:
    try:
        store.create(code_key(content_hash), archive)
    except ObjectExists:
        return False  # by another at the same moment; what counts is the content, which `unpack` checks
    return True


def _archive(package: Package) -> tuple[bytes, str]:
    """(zip file, hash of what is in it)."""
    buffer, contents = io.BytesIO(), []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in package.files:
            data = file.path.read_bytes()
            entry = zipfile.ZipInfo(file.name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if file.executable else 0o100644) << 16
            archive.writestr(entry, data)
            contents.append((file.name, file.executable, data))
    return buffer.getvalue(), _hash(contents)


def unpack(store: ObjectStore, content_hash: str, cache: Path) -> Path:
    """The folder with the package's files, unpacked if it is not there; processes of one node that ask at once unpack it once.

    Raises ObjectNotFound, CorruptObject if its content is not what the hash says, or another StorageError.
    """
    folder = cache / "code" / content_hash
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _unpack(store.get(code_key(content_hash)), content_hash, folder)
    return folder


def _unpack(archive: bytes, content_hash: str, folder: Path) -> None:
    draft = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        contents = sorted(_entries(archive, content_hash))
        if _hash(contents) != content_hash:
            raise CorruptObject(f"'{code_key(content_hash)}' holds other files than were packaged.")
        for name, executable, data in contents:
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o755 if executable else 0o644)
        draft.chmod(0o755)
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _entries(archive: bytes, content_hash: str, most_bytes: float = math.inf) -> Iterator[tuple[str, bool, bytes]]:
    """(name, executable, content). A name that would lead out of the folder is damage too, and so is more than `most_bytes` unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            if sum(entry.file_size for entry in packed.infolist()) > most_bytes:
                raise CorruptObject(f"'{code_key(content_hash)}' is too large: allowed are {most_bytes:.0f} bytes, unpacked.")
            for entry in packed.infolist():
                parts = PurePosixPath(entry.filename).parts
                if entry.filename.startswith("/") or ".." in parts or not parts:
                    raise CorruptObject(f"'{code_key(content_hash)}' names a file outside its folder: '{entry.filename}'.")
                yield entry.filename, bool(entry.external_attr >> 16 & 0o100), packed.read(entry)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise CorruptObject(f"'{code_key(content_hash)}' is damaged: {error}") from error


def _hash(contents: Iterable[tuple[str, bool, bytes]]) -> str:
    """SHA-256 over names, modes and contents, whatever the archive's compression makes of them."""
    digest = hashlib.sha256()
    for name, executable, data in contents:
        digest.update(f"{name}\0{int(executable)}\0{hashlib.sha256(data).hexdigest()}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
