"""What of a job's checkpoints is in the store: the commits with their marks, and what no commit names. Only looks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.checkpoints.commit import CommitLog, CommitRef
from orchestrator.errors import CorruptObject, ObjectNotFound
from orchestrator.paths import JobKeys, commit_of, manifest_key
from orchestrator.storage import ObjectStore

Step = tuple[int, int]
"""(epoch, step): what names a commit; the greater one is the newer."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What house-keeping needs of a manifest; a manifest never changes."""

    segments: Mapping[str, int]
    """Bytes by key."""
    world_size: int
    zero_stage: int
    sizes: Mapping[str, int]
    """Of the parallel groups, by the setting's name; empty if the job did not say."""


Summaries = dict[str, Summary]
"""By commit key: what was read is not read again."""

Argument = TypeVar("Argument")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One commit."""

    ref: CommitRef
    counts: bool
    """It is on the chain of the newest epoch and not marked suspect."""
    suspect: bool
    pinned: bool
    tombstone_s: float | None
    """Unix time since when it is about to be deleted."""
    summary: Summary | None
    """None if the manifest cannot be read."""
    fault: str
    """Why it cannot be restored, as far as can be told without reading its tensors; empty: all is there, of the right size."""

    @property
    def step(self) -> Step:
        return self.ref.epoch, self.ref.step

    @property
    def good(self) -> bool:
        return self.counts and not self.fault

    @property
    def abandoned(self) -> bool:
        """A later epoch went on from an earlier step: it is never used again."""
        return not self.counts and not self.suspect

    def references(self) -> set[str]:
        """Keys of the segments that its manifest names; some may lie in another checkpoint's prefix."""
        return set(self.summary.segments) if self.summary else set()

    @property
    def referenced_bytes(self) -> int:
        """Of segments that are stored in other checkpoints."""
        segments = self.summary.segments if self.summary else {}
        return sum(size for key, size in segments.items() if not key.startswith(self.ref.prefix))


@dataclass(frozen=True, kw_only=True)
class Catalog:
    entries: tuple[Entry, ...]
    """Newest first."""
    unreadable: tuple[str, ...]
    """Keys of damaged commit objects."""
    objects: Mapping[str, Mapping[str, int]]
    """Bytes by key, by prefix of every checkpoint, also of those without a commit."""
    tombstones: Mapping[str, float]
    """Unix times by prefix."""
    pins: frozenset[Step]
    suspects: frozenset[Step]

    def own_bytes(self, entry: Entry) -> int:
        return sum(self.objects.get(entry.ref.prefix, {}).values())


def read_catalog(store: ObjectStore, keys: JobKeys, known: Summaries | None = None) -> Catalog:
    """`known` is used and added to. Raises StorageError.

    The order of the requests matters to who runs beside: the commits are listed before the chain is followed, so that a commit off the
    chain is known to be abandoned, and before the objects, so that what a commit names is listed if it is there.
    """
    log, known = CommitLog(store, keys), {} if known is None else known
    listed = [info.key for info in store.list(keys.commits)]
    chain = {ref.key: ref for ref in log.chain()}
    refs, unreadable = _read_commits(log, listed, chain)
    marks = {keys.entombed(info.key): _since(store, info.key) for info in store.list(keys.tombstones)}
    tombstones = {prefix: since for prefix, since in marks.items() if since is not None}
    pins = frozenset(commit_of(info.key) for info in store.list(keys.pins))
    suspects = frozenset(commit_of(info.key) for info in store.list(keys.suspects))
    objects = _by_prefix(store, keys)
    sizes = {key: size for found in objects.values() for key, size in found.items()}
    for gone in known.keys() - {ref.key for ref in refs}:
        del known[gone]
    entries = []
    for ref in sorted(refs, key=lambda ref: (ref.epoch, ref.step), reverse=True):
        summary = _summary(log, ref, known)
        entry = Entry(
            ref=ref, counts=ref.key in chain, suspect=(ref.epoch, ref.step) in suspects, pinned=(ref.epoch, ref.step) in pins,
            tombstone_s=tombstones.get(ref.prefix), summary=None if isinstance(summary, CorruptObject) else summary,
            fault=_fault(ref, summary, sizes),
        )  # fmt: skip
        entries.append(entry)
    return Catalog(
        entries=tuple(entries), unreadable=unreadable, objects=objects, tombstones=tombstones, pins=pins, suspects=suspects
    )  # fmt: skip


def _read_commits(log: CommitLog, listed: Iterable[str], chain: Mapping[str, CommitRef]) -> tuple[list[CommitRef], tuple[str, ...]]:
    found, unreadable = list(chain.values()), []
    for key in listed:
        if key not in chain:
            try:
                found.append(_twice(log.read, key))
            except CorruptObject:
                unreadable.append(key)
            except ObjectNotFound:  # deleted since it was listed
                continue
    return found, tuple(unreadable)


def _twice(read: Callable[[Argument], Found], argument: Argument) -> Found:
    """What comes damaged once may have been damaged on its way."""
    try:
        return read(argument)
    except CorruptObject:
        return read(argument)


def _since(store: ObjectStore, tombstone: str) -> float | None:
    """None if it is damaged, or was removed meanwhile."""
    try:
        return float(json.loads(store.get(tombstone))["time_s"])
    except (ObjectNotFound, ValueError, KeyError, TypeError):
        return None


def _by_prefix(store: ObjectStore, keys: JobKeys) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for info in store.list(keys.checkpoints):
        name = info.key.removeprefix(keys.checkpoints).split("/", 1)[0]
        found[f"{keys.checkpoints}{name}/"][info.key] = info.num_bytes
    return dict(found)


def _summary(log: CommitLog, ref: CommitRef, known: Summaries) -> Summary | CorruptObject:
    if ref.key not in known:
        try:
            manifest = _twice(log.load_manifest, ref)
        except CorruptObject as error:
            return error
        known[ref.key] = Summary(
            segments={segment.key: segment.num_bytes for segment in manifest.segments}, world_size=manifest.world_size,
            zero_stage=manifest.zero_stage, sizes=manifest.job_scalars.get("sizes") or {},
        )  # fmt: skip
    return known[ref.key]


def _fault(ref: CommitRef, summary: Summary | CorruptObject, sizes: Mapping[str, int]) -> str:
    if isinstance(summary, CorruptObject):
        return str(summary)
    if manifest_key(ref.prefix) not in sizes:
        return f"'{manifest_key(ref.prefix)}' is gone."
    for key, expected in summary.segments.items():
        if key not in sizes:
            return f"'{key}' is gone."
        if sizes[key] != expected:
            return f"'{key}' has {sizes[key]} bytes, expected are {expected}."
    return ""
