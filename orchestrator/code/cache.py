"""The packages that are unpacked on a node.

    code/<content hash>/                        the files
    code/<content hash>.lock                    held by the one that unpacks, removes or begins to use them, for as long as that takes
    code/<content hash>.used                    shared by the processes that use them, as long as they live; its time says when one
                                                began last, its text how many bytes there are
    code/.unfinished-<content hash>-<random>/   half unpacked or half removed, by a process that may have died of it

The kernel lets go of the locks of a process that is killed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.code.package import contents_of
from orchestrator.paths import code_key
from orchestrator.storage import ObjectStore

MAX_AGE_S = 14 * 86400.0
"""Since a process began to use it last."""
MAX_BYTES = 2e9
"""Of all that are unpacked; those in use may be more."""
log = logging.getLogger("orchestrator.code")
_NAME = re.compile(r"(?:\.unfinished-)?([0-9a-f]{64})(?:\.lock|\.used|-.*)?")

_in_use: dict[Path, int] = {}
"""Folder -> the descriptor of its mark, until this process ends."""


def unpack(store: ObjectStore, content_hash: str, cache: Path) -> Path:
    """The folder with the package's files, unpacked if it is not there; processes of one node that ask at once unpack it once.

    It stays as long as this process lives. Raises ObjectNotFound, CorruptObject if its content is not what the hash says, or another
    StorageError.
    """
    folder = cache / "code" / content_hash
    if folder in _in_use:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as held:
        assert held, "it was waited for"
        is_new = not folder.is_dir()
        if is_new:
            _unpack(store.get(code_key(content_hash)), content_hash, folder)
        mark = _mark(folder, fcntl.LOCK_SH)  # who wants it alone holds the lock
        assert mark is not None
        os.utime(mark)
    if _in_use.setdefault(folder, mark) != mark:  # another thread was quicker
        os.close(mark)
    if is_new:
        _tidy(cache)
    return folder


def release(folder: Path) -> None:
    """This process uses it no more."""
    os.close(_in_use.pop(folder))


def _tidy(cache: Path) -> None:
    try:
        prune(cache, time.time())
    except OSError as error:  # the job that is about to begin is not to fail of it
        log.warning("packages that nobody uses stay in %s: %s", cache, error)


def prune(cache: Path, now: float, max_age_s: float = MAX_AGE_S, max_bytes: float = MAX_BYTES) -> list[str]:
    """Remove what has not been used for `max_age_s`, and then, above `max_bytes`, what has not been used for longest. Returns the hashes.

    Nothing that a process uses or unpacks, and nothing waits for it.
    """
    hashes = {match[1] for path in (cache / "code").iterdir() if (match := _NAME.fullmatch(path.name))}
    found = sorted((_look(cache / "code" / name) for name in hashes), key=lambda one: one.used_s)
    total, removed = sum(one.num_bytes for one in found), []
    for one in found:
        is_over = now - one.used_s > max_age_s or total > max_bytes
        if (is_over or one.is_torn) and _remove(one.folder, whole=is_over) and is_over:
            removed.append(one.folder.name)
            total -= one.num_bytes
    return removed


@dataclass(frozen=True)
class _Unpacked:
    folder: Path
    used_s: float
    num_bytes: int
    is_torn: bool
    """Something half done lies beside it."""


def _look(folder: Path) -> _Unpacked:
    try:
        used_s, text = _used(folder).stat().st_mtime, _used(folder).read_text()
    except FileNotFoundError:
        used_s, text = 0.0, ""
    torn = any(folder.parent.glob(f".unfinished-{folder.name}-*"))
    return _Unpacked(folder, used_s, int(text) if text.isdigit() else 0, torn)


def _remove(folder: Path, whole: bool) -> bool:
    """Out of the way at once, then file by file; not `whole`: only what is half done. False if it is in use."""
    with _locked(folder, wait=False) as held:
        mark = _mark(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) if held and whole else None
        if not held or (whole and mark is None):
            return False
        _sweep(folder)
        if mark is not None:
            if folder.is_dir():
                folder.replace(folder.parent / f".unfinished-{folder.name}-removed")
                _sweep(folder)
            _used(folder).unlink()
            os.close(mark)
        if not folder.is_dir():
            _lock(folder).unlink()
    return True


def _sweep(folder: Path) -> None:
    for left in folder.parent.glob(f".unfinished-{folder.name}-*"):
        shutil.rmtree(left)


def _unpack(archive: bytes, content_hash: str, folder: Path) -> None:
    draft = Path(tempfile.mkdtemp(prefix=f".unfinished-{content_hash}-", dir=folder.parent))
    try:
        contents = contents_of(archive, content_hash)
        for name, executable, data in contents:
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o755 if executable else 0o644)
        draft.chmod(0o755)
        _used(folder).write_text(str(sum(len(data) for _, _, data in contents)))
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Whether it is held; else others hold it, and it was not waited for."""
    lock = _open_lock(_lock(folder), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _open_lock(path: Path, how: int) -> int | None:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _flock(lock, how):
            return None
        if _is_at(lock, path):
            return lock
        os.close(lock)  # it was removed while it was waited for, and another one may be there


def _mark(folder: Path, how: int) -> int | None:
    """A descriptor of what says that it is used; None if others hold it and `how` does not wait. Only with the lock."""
    mark = os.open(_used(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return mark if _flock(mark, how) else None


def _flock(descriptor: int, how: int) -> bool:
    """False, and the descriptor is closed, if others hold it and `how` does not wait."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _used(folder: Path) -> Path:
    return folder.with_suffix(".used")
