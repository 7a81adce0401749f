"""Old checkpoints leave the store: a tombstone first, and when who reads has had time to finish the commit, then the bytes.

    committed ---> tombstone ---> grace is over: commit, manifest, indexes, segments ---> tombstone
                        \\-> wanted after all: the tombstone goes, the checkpoint stays

Each arrow is one pass of `apply_retention`, or more: a pass that is killed anywhere is finished by the next. A segment that a remaining
manifest names stays, in whatever checkpoint's prefix it lies.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from orchestrator.checkpoints.catalog import Catalog, Entry, Step, Summaries, read_catalog
from orchestrator.checkpoints.commit import CommitRef
from orchestrator.checkpoints.restore_attempts import RestoreAttempts
from orchestrator.errors import StorageError
from orchestrator.paths import JobKeys, commit_of, step_of
from orchestrator.spec import JobSpec
from orchestrator.storage import HasUploads, ObjectStore

ABORT_AFTER_S = 3600.0
"""An upload in parts that was begun longer ago is nobody's: a segment takes seconds."""
THREADS = 8

log = logging.getLogger("orchestrator.checkpoints")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What stays: the newest `keep_last` good commits (0: all), one of every `keep_every_s`, and the `keep_best` whose step was evaluated
    best by `metric`. What does not is marked, and deleted `grace_s` later."""

    keep_last: int
    keep_every_s: float = 0.0
    keep_best: int = 0
    metric: str = "loss"
    maximize: bool = False
    grace_s: float = 0.0

    def best(self, commits: Iterable[CommitRef]) -> list[CommitRef]:
        """Best first; the earlier of equal ones. Those that were not evaluated, or by another metric, are not among them."""
        figures = [(ref.value, ref) for ref in commits if ref.metric == self.metric and ref.value is not None]
        ordered = sorted(figures, key=lambda item: (-item[0] if self.maximize else item[0], item[1].step))
        return [ref for _, ref in ordered[: self.keep_best]]

    def spaced(self, commits: Iterable[CommitRef]) -> list[CommitRef]:
        """The first of each period of `keep_every_s`, counted from the Unix epoch: which they are does not change when others go."""
        found: dict[float, CommitRef] = {}
        for ref in sorted(commits, key=lambda ref: (ref.time_s, ref.step)) if self.keep_every_s else ():
            found.setdefault(ref.time_s // self.keep_every_s, ref)
        return list(found.values())


def policy_of(spec: JobSpec) -> Policy:
    kept = spec.checkpoint
    return Policy(
        keep_last=kept.keep_last, keep_every_s=3600 * kept.keep_every_hours, keep_best=kept.keep_best,
        metric=spec.training.best_metric, maximize=spec.training.best_maximize, grace_s=60 * kept.grace_minutes,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One checkpoint that goes now."""

    prefix: str
    commit: str | None
    """None: an unfinished save, or what an interrupted removal left."""
    suspect: str | None
    """Key of its mark."""
    objects: Mapping[str, int]
    """Bytes by key, without the segments that others need."""

    @property
    def num_bytes(self) -> int:
        return sum(self.objects.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    kept: tuple[Entry, ...] = ()
    """Stay for good, as things are."""
    condemned: tuple[str, ...] = ()
    """Prefixes that get a tombstone now."""
    pardoned: tuple[str, ...] = ()
    """Prefixes whose tombstone goes: wanted again, or nothing is left of them."""
    waiting: Mapping[str, float] = field(default_factory=dict)
    """Prefixes in their grace, and when it is over, as Unix time."""
    removals: tuple[Removal, ...] = ()
    damaged: tuple[str, ...] = ()
    """Commit objects that cannot be read and are older than what is kept."""

    @property
    def num_bytes(self) -> int:
        return sum(removal.num_bytes for removal in self.removals)


def apply_retention(
    store: ObjectStore, keys: JobKeys, policy: Policy, clock: Callable[[], float] = time.time, known: Summaries | None = None
) -> list[str]:  # fmt: skip
    """One pass: mark what the policy does not keep, delete what was marked long enough ago. Returns the deleted prefixes.

    Also deleted: commits that the job has gone back behind, saves that were not finished before the newest commit, uploads that nobody
    goes on with. While no good commit is left nothing is. `known`: manifests that earlier passes have read. Raises StorageError.
    """
    if policy.keep_last == 0:
        return []
    found = plan(read_catalog(store, keys, known), keys, policy, clock())
    carry_out(store, keys, found, clock())
    return [removal.prefix for removal in found.removals]


def plan(catalog: Catalog, keys: JobKeys, policy: Policy, now: float) -> Plan:
    """What a pass at Unix time `now` does. Pure."""
    good = [entry for entry in catalog.entries if entry.good]
    if not good or policy.keep_last == 0:
        return Plan(kept=catalog.entries)
    kept = _kept(catalog.entries, good, policy)
    doomed = {entry.ref.prefix for entry in catalog.entries} - {entry.ref.prefix for entry in kept}
    rest = _uncommitted(catalog, good[0].step)
    due = {prefix for prefix in doomed | rest if catalog.tombstones.get(prefix, now) + policy.grace_s <= now}
    needed = {key for entry in catalog.entries if entry.ref.prefix not in due for key in entry.references()}
    left = {prefix: _without(catalog.objects.get(prefix, {}), needed) for prefix in doomed | rest}
    leaving = {prefix for prefix in doomed | rest if prefix in doomed or left[prefix]}
    commits = {entry.ref.prefix: entry.ref for entry in catalog.entries}
    return Plan(
        kept=tuple(kept),
        condemned=tuple(sorted(leaving - catalog.tombstones.keys())),
        pardoned=tuple(sorted(catalog.tombstones.keys() - leaving)),
        waiting={prefix: catalog.tombstones.get(prefix, now) + policy.grace_s for prefix in sorted(leaving - due)},
        removals=tuple(_removal(prefix, commits.get(prefix), left[prefix], catalog, keys) for prefix in sorted(leaving & due)),
        damaged=tuple(key for key in catalog.unreadable if commit_of(key) < good[0].step and commit_of(key) not in catalog.pins),
    )


def _kept(entries: Iterable[Entry], good: list[Entry], policy: Policy) -> list[Entry]:
    newest = good[: policy.keep_last]
    refs = [entry.ref for entry in good]
    wanted = {ref.key for ref in (*(entry.ref for entry in newest), *policy.best(refs), *policy.spaced(refs))}

    def stays(entry: Entry) -> bool:
        """Also a damaged one, until as many newer ones are good: somebody may want to look at it."""
        fresh = not entry.abandoned and not entry.good and entry.step > newest[-1].step
        return entry.pinned or entry.ref.key in wanted or fresh

    return [entry for entry in entries if stays(entry)]


def _uncommitted(catalog: Catalog, newest: Step) -> set[str]:
    """Prefixes that no commit names and that are older than the newest good commit; of what an epoch before it began nothing goes on."""
    committed = {entry.ref.prefix for entry in catalog.entries}
    return {prefix for prefix in catalog.objects.keys() - committed if step_of(prefix) < newest and step_of(prefix) not in catalog.pins}


def _without(objects: Mapping[str, int], needed: set[str]) -> dict[str, int]:
    return {key: size for key, size in objects.items() if key not in needed}


def _removal(prefix: str, ref: CommitRef | None, objects: Mapping[str, int], catalog: Catalog, keys: JobKeys) -> Removal:
    step = step_of(prefix)
    suspect = keys.suspect(*step) if step in catalog.suspects else None
    return Removal(prefix=prefix, commit=ref.key if ref else None, suspect=suspect, objects=objects)


def carry_out(store: ObjectStore, keys: JobKeys, found: Plan, now: float, tell: Callable[[int], None] = lambda num_bytes: None) -> None:
    """`tell(bytes)` hears of every object that is gone. Raises StorageError."""
    for prefix in found.pardoned:
        store.delete(keys.tombstone(prefix))
    for prefix in found.condemned:
        store.put(keys.tombstone(prefix), json.dumps({"checkpoint": prefix, "time_s": now}).encode())
    for key in found.damaged:
        store.delete(key)
        store.delete(keys.suspect(*commit_of(key)))
    for removal in found.removals:
        _remove(store, keys, removal, tell)
    if isinstance(store, HasUploads):
        try:
            store.abort_unfinished(keys.checkpoints, ABORT_AFTER_S)
        except StorageError as error:  # not every store and key can list them, and nothing depends on it
            log.info("unfinished uploads stay: %s", error)


def _remove(store: ObjectStore, keys: JobKeys, removal: Removal, tell: Callable[[int], None]) -> None:
    """The commit first, so that nobody begins to read; the tombstone last, so that the next pass knows what to finish."""
    for key in (removal.commit, removal.suspect):
        if key:
            store.delete(key)
    if removal.commit:
        RestoreAttempts(store, keys, removal.commit).forget()
    with ThreadPoolExecutor(THREADS) as pool:
        for size, _ in zip(removal.objects.values(), pool.map(store.delete, removal.objects), strict=True):
            tell(size)
    store.delete(keys.tombstone(removal.prefix))
