"""Who owns a job, and which of its checkpoints count.

An epoch begins by a create-only lease, then a LIST of the commits, then a create-only base that names the commit it goes on from. A
commit counts only on the chain commit -> epoch -> base -> commit ... of the highest epoch that has a base; so what a lost twin of
an older epoch commits later is seen by nobody.

What the order of the requests is good for is proven by search: `tests/unit/checkpoints/test_protocol_model.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from ulid import ULID

from orchestrator.checkpoints.manifest import Manifest, WriterIndex, assemble, crc64, decode_index, decode_manifest, encode
from orchestrator.errors import CorruptObject, FencedError, IncompatibleCheckpoint, ObjectExists, ObjectNotFound
from orchestrator.paths import JobKeys, index_key, manifest_key
from orchestrator.storage import ObjectStore

_NO_LIMIT = 2**62
THREADS = 16

log = logging.getLogger("orchestrator.checkpoints")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class CommitRef:
    """One commit object, read."""

    key: str
    job_id: str
    epoch: int
    step: int
    prefix: str
    manifest_crc: int
    metric: str = ""
    value: float | None = None
    """The figure `metric` of the evaluation of this very step; None if there was none."""
    time_s: float = 0.0
    """Unix time; retention spaces commits by it."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    number: int
    commits: tuple[CommitRef, ...]
    """What it may go on from, newest first."""


class CommitLog:
    """`nonce()` makes the leases of two supervisors differ, also where they call themselves by the same name. With
    one of the `threads`, which read what the writers have stored, all requests come in order."""

    def __init__(self, store: ObjectStore, keys: JobKeys, nonce: Callable[[], str] = lambda: str(ULID()), threads: int = THREADS) -> None:
        self._store = store
        self._keys = keys
        self._nonce = nonce
        self._threads = threads

    def begin_epoch(self, owner: str) -> Epoch:
        """Take the job over: every older epoch is fenced from here on.

        Raises FencedError if a newer epoch was quicker and has committed already, StorageError.
        """
        number = self._take_lease(owner)
        commits = self.chain()
        newest = max((ref.epoch for ref in commits), default=0)
        if newest > number:
            raise FencedError(f"epoch {number} of {self._keys.job_id} is over: epoch {newest} has committed")
        self._store.create(self._keys.base(number), _sealed({"commit": commits[0].key if commits else None}))
        return Epoch(number=number, commits=tuple(commits))

    def _take_lease(self, owner: str) -> int:
        number, nonce = self._highest(self._keys.leases), self._nonce()
        while True:
            number += 1
            try:
                self._store.create(self._keys.lease(number), _sealed({"owner": owner, "epoch": number, "nonce": nonce}))
            except ObjectExists:
                continue
            return number

    def commit(
        self,
        *,
        epoch: int,
        step: int,
        prefix: str,
        num_writers: int,
        world_size: int,
        zero_stage: int,
        job_scalars: Mapping[str, Any],
        time_s: float = 0.0,
    ) -> CommitRef:
        """Prove that the writers' slices cover every tensor and that their bytes are there, write the manifest, commit.

        Who calls again because an answer was lost gives the same `time_s`: the commit object must be the same, byte for byte.
        Raises CoverageError, CorruptObject (an index or a segment), FencedError (a newer epoch, or another commit of this step) and
        other StorageErrors.
        """
        manifest = assemble(
            self._indexes([index_key(prefix, writer) for writer in range(num_writers)]),
            job_id=self._keys.job_id,
            step=step,
            epoch=epoch,
            prefix=prefix,
            world_size=world_size,
            zero_stage=zero_stage,
            job_scalars=dict(job_scalars),
        )
        self._check_stored(manifest)
        content = encode(manifest)
        self._store.put(manifest_key(prefix), content)
        self.check_owner(epoch)
        ref = CommitRef(
            key=self._keys.commit(epoch, step),
            job_id=self._keys.job_id,
            epoch=epoch,
            step=step,
            prefix=prefix,
            manifest_crc=crc64(content),
            time_s=time_s,
            **(job_scalars.get("evaluated") or {}),
        )
        self._create_commit(ref)
        self.check_owner(epoch)
        return ref

    def _indexes(self, keys: Sequence[str]) -> list[WriterIndex]:
        if (threads := min(self._threads, len(keys))) == 1:
            return [self._index(key) for key in keys]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self._index, keys))

    def _index(self, key: str) -> WriterIndex:
        try:
            return decode_index(self._store.get(key), key)
        except ObjectNotFound as error:
            raise CorruptObject(f"'{key}' is not in the store, so what this writer has saved is not known.") from error

    def _check_stored(self, manifest: Manifest) -> None:
        """Every segment is in the store, of its size; those that never change may lie under an older checkpoint."""
        sizes: dict[str, int] = {}
        for prefix in sorted({segment.key.rsplit("/", 1)[0] for segment in manifest.segments}):
            sizes |= {info.key: info.num_bytes for info in self._store.list(f"{prefix}/seg-")}
        for segment in manifest.segments:
            if sizes.get(segment.key) != segment.num_bytes:
                found = f"has {sizes[segment.key]} bytes" if segment.key in sizes else "is not in the store"
                raise CorruptObject(f"'{segment.key}' {found}; its writer stored {segment.num_bytes} bytes.")

    def _create_commit(self, ref: CommitRef) -> None:
        try:
            self._store.create(ref.key, _sealed(asdict(ref)))
        except ObjectExists:
            raise FencedError(f"step {ref.step} of epoch {ref.epoch} of {ref.job_id} was committed by somebody else") from None

    def check_owner(self, epoch: int) -> None:
        """Raises FencedError if a newer epoch holds a lease."""
        highest = self._highest(self._keys.leases)
        if highest > epoch:
            raise FencedError(f"epoch {epoch} of {self._keys.job_id} is over: epoch {highest} owns the job")

    def chain(self) -> list[CommitRef]:
        """The commits that count, newest first; those marked suspect are left out.

        Those that retention is about to delete come last: they serve if all others turn out to be damaged.
        """
        known_missing: set[str] = set()
        while True:
            found, missing = [], set()
            for key in self._counted():
                try:
                    found.append(self._read(key))
                except ObjectNotFound:
                    missing.add(key)
            if missing <= known_missing:
                doomed = {self._keys.entombed(info.key) for info in self._store.list(self._keys.tombstones)}
                return sorted((ref for ref in found if ref), key=lambda ref: ref.prefix in doomed)
            known_missing |= missing  # retired since they were listed, so there are newer ones

    def _counted(self) -> list[str]:
        """Keys. The commits are listed before the bases: a commit that is too late for a base is then never counted."""
        suspects = {info.key.rsplit("/", 1)[1] for info in self._store.list(self._keys.suspects)}
        by_epoch: dict[int, dict[int, str]] = {}
        for info in self._store.list(self._keys.commits):
            epoch, step = _parse(info.key)
            by_epoch.setdefault(epoch, {})[step] = info.key
        return [
            by_epoch[epoch][step]
            for epoch, last_step in self._epochs(by_epoch)
            for step in sorted(by_epoch.get(epoch, ()), reverse=True)
            if step <= last_step and by_epoch[epoch][step].rsplit("/", 1)[1] not in suspects
        ]

    def _epochs(self, steps: Mapping[int, Mapping[int, str]]) -> Iterator[tuple[int, int]]:
        """(epoch, last step of it that counts) along the bases, newest first.

        Where a base is damaged, the epoch before stands in for what it named: all that was announced before it is on that one's chain.
        """
        epochs = self._numbers(self._keys.bases)
        epoch, last_step = max(epochs, default=0), _NO_LIMIT
        while epoch:
            yield epoch, last_step
            try:
                base = self._base(epoch)
            except (CorruptObject, ObjectNotFound) as error:
                log.warning("the epochs before %d are searched for its base: %s", epoch, error)
                last_step = min(last_step, min(steps.get(epoch, ()), default=_NO_LIMIT) - 1)
                epoch = max((number for number in epochs if number < epoch), default=0)
                continue
            epoch, last_step = _parse(base) if base else (0, 0)

    def _base(self, epoch: int) -> str | None:
        """Key of the commit that the epoch went on from; None if it began with nothing."""
        key = self._keys.base(epoch)
        base: str | None = self._twice(lambda: _unsealed(self._store.get(key), key)).get("commit")
        return base

    @staticmethod
    def _twice(read: Callable[[], Found]) -> Found:
        """What comes damaged once may have been damaged on its way."""
        try:
            return read()
        except CorruptObject:
            return read()

    def read(self, key: str) -> CommitRef:
        """The commit under `key`. Raises CorruptObject, ObjectNotFound, IncompatibleCheckpoint (another job's or version's)."""
        values = self._twice(lambda: _unsealed(self._store.get(key), key))
        try:
            ref = CommitRef(**values)
        except TypeError as error:
            raise IncompatibleCheckpoint(f"'{key}' is a commit of another version: {error}") from error
        if ref.job_id != self._keys.job_id:
            raise IncompatibleCheckpoint(f"'{key}' is a commit of job {ref.job_id}, not of {self._keys.job_id}.")
        return ref

    def _read(self, key: str) -> CommitRef | None:
        """A damaged commit object is marked and left out: None."""
        try:
            return self.read(key)
        except CorruptObject as error:
            self.mark_suspect(key, str(error))
            return None

    def load_manifest(self, ref: CommitRef) -> Manifest:
        """Raises CorruptObject if it is damaged or gone."""
        return self._twice(lambda: self._manifest(ref))

    def _manifest(self, ref: CommitRef) -> Manifest:
        key = manifest_key(ref.prefix)
        try:
            content = self._store.get(key)
        except ObjectNotFound as error:
            raise CorruptObject(f"'{key}', which '{ref.key}' names, is gone.") from error
        if crc64(content) != ref.manifest_crc:
            raise CorruptObject(f"'{key}' is damaged: CRC-64 {crc64(content):016x}, expected {ref.manifest_crc:016x}.")
        return decode_manifest(content, key)

    def mark_suspect(self, commit_key: str, message: str) -> None:
        """From now on the chain leaves this commit out."""
        self._store.put(self._keys.suspect(*_parse(commit_key)), json.dumps({"commit": commit_key, "message": message}).encode())

    def _highest(self, prefix: str) -> int:
        return max(self._numbers(prefix), default=0)

    def _numbers(self, prefix: str) -> list[int]:
        return [int(info.key.rsplit("/", 1)[1].split(".")[0]) for info in self._store.list(prefix)]


def _parse(commit_key: str) -> tuple[int, int]:
    """(epoch, step) of a commit's key."""
    epoch, step = commit_key.rsplit("/", 1)[1].removesuffix(".json").split("-")
    return int(epoch), int(step)


def _sealed(values: Mapping[str, Any]) -> bytes:
    text = json.dumps(values, sort_keys=True)
    return json.dumps({"values": values, "crc": crc64(text.encode())}, sort_keys=True).encode()


def _unsealed(data: bytes, key: str) -> dict[str, Any]:
    """Raises CorruptObject unless `data` is, byte for byte, what `_sealed` made."""
    try:
        values = json.loads(data)["values"]
        intact = _sealed(values) == data
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptObject(f"'{key}' is damaged: {error!r}") from error
    if not intact:
        raise CorruptObject(f"'{key}' is damaged: its checksum does not match.")
    return dict(values)
