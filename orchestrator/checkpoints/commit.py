"""Who owns a job, and which of its checkpoints count.

An epoch begins by a create-only lease, then a LIST of the commits, then a create-only base that names the commit it goes on from. A
commit counts only on the chain commit -> epoch -> base -> commit ... of the highest epoch that has a base; so what a lost twin of
an older epoch commits later is seen by nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.checkpoints.manifest import Manifest, assemble, crc64, decode_index, decode_manifest, encode
from orchestrator.errors import CorruptObject, FencedError, IncompatibleCheckpoint, ObjectExists, ObjectNotFound
from orchestrator.paths import JobKeys, index_key, manifest_key
from orchestrator.storage import ObjectStore


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


@dataclass(frozen=True, kw_only=True)
class Epoch:
    number: int
    commits: tuple[CommitRef, ...]
    """What it may go on from, newest first."""


class CommitLog:
    def __init__(self, store: ObjectStore, keys: JobKeys) -> None:
        self._store = store
        self._keys = keys

    def begin_epoch(self, owner: str) -> Epoch:
        """Take the job over: every older epoch is fenced from here on."""
        number = self._take_lease(owner)
        commits = self.chain()
        base = json.dumps({"commit": commits[0].key if commits else None}).encode()
        self._store.create(self._keys.base(number), base)
        return Epoch(number=number, commits=tuple(commits))

    def _take_lease(self, owner: str) -> int:
        number = self._highest(self._keys.leases)
        while True:
            number += 1
            try:
                self._store.create(self._keys.lease(number), json.dumps({"owner": owner, "epoch": number}).encode())
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
    ) -> CommitRef:
        """Prove that the writers' slices cover every tensor, write the manifest, commit.

        Raises CoverageError, CorruptObject (an index), FencedError (a newer epoch, or another commit of this step), StorageError.
        """
        keys = [index_key(prefix, writer) for writer in range(num_writers)]
        manifest = assemble(
            [decode_index(self._store.get(key), key) for key in keys],
            job_id=self._keys.job_id,
            step=step,
            epoch=epoch,
            prefix=prefix,
            world_size=world_size,
            zero_stage=zero_stage,
            job_scalars=dict(job_scalars),
        )
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
            **(job_scalars.get("evaluated") or {}),
        )
        self._create_commit(ref)
        self.check_owner(epoch)
        return ref

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
        """The commits that count, newest first; those marked suspect are left out."""
        suspects = {info.key.rsplit("/", 1)[1] for info in self._store.list(self._keys.suspects)}
        by_epoch: dict[int, list[tuple[int, str]]] = {}
        for info in self._store.list(self._keys.commits):
            epoch, step = _parse(info.key)
            by_epoch.setdefault(epoch, []).append((step, info.key))
        found = []
        for epoch, last_step in self._epochs():
            for step, key in sorted(by_epoch.get(epoch, ()), reverse=True):
                if step <= last_step and key.rsplit("/", 1)[1] not in suspects:
                    found.append(key)
        return [ref for ref in map(self._read, found) if ref]

    def _epochs(self) -> list[tuple[int, int]]:
        """(epoch, last step of it that counts) along the bases, newest first."""
        epoch, last_step = self._highest(self._keys.bases), 2**62
        found = []
        while epoch:
            found.append((epoch, last_step))
            base = self._base(epoch)
            if base is None:
                break
            epoch, last_step = _parse(base)
        return found

    def _base(self, epoch: int) -> str | None:
        key = self._keys.base(epoch)
        try:
            value = json.loads(self._store.get(key))["commit"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptObject(f"'{key}' is damaged: {error!r}") from error
        return None if value is None else str(value)

    def read(self, key: str) -> CommitRef:
        """The commit under `key`. Raises CorruptObject, ObjectNotFound, IncompatibleCheckpoint (another job's)."""
        values = _unsealed(self._store.get(key), key)
        ref = CommitRef(**values)
        if ref.job_id != self._keys.job_id:
            raise IncompatibleCheckpoint(f"'{key}' is a commit of job {ref.job_id}, not of {self._keys.job_id}.")
        return ref

    def _read(self, key: str) -> CommitRef | None:
        """None if it was retired meanwhile; a damaged commit object is marked and left out."""
        try:
            return self.read(key)
        except ObjectNotFound:
            return None
        except CorruptObject as error:
            self.mark_suspect(key, str(error))
            return None

    def load_manifest(self, ref: CommitRef) -> Manifest:
        """Raises CorruptObject if it is damaged or gone."""
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
        return max((int(info.key.rsplit("/", 1)[1].split(".")[0]) for info in self._store.list(prefix)), default=0)


def _parse(commit_key: str) -> tuple[int, int]:
    """(epoch, step) of a commit's key."""
    epoch, step = commit_key.rsplit("/", 1)[1].removesuffix(".json").split("-")
    return int(epoch), int(step)


def _sealed(values: Mapping[str, Any]) -> bytes:
    text = json.dumps(values, sort_keys=True)
    return json.dumps({"values": values, "crc": crc64(text.encode())}, sort_keys=True).encode()


def _unsealed(data: bytes, key: str) -> dict[str, Any]:
    try:
        record = json.loads(data)
        values = record["values"]
        intact = crc64(json.dumps(values, sort_keys=True).encode()) == record["crc"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptObject(f"'{key}' is damaged: {error!r}") from error
    if not intact:
        raise CorruptObject(f"'{key}' is damaged: its checksum does not match.")
    return dict(values)
