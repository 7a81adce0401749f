"""The life of a job's checkpoints with something that goes wrong, and what a supervisor that comes after must find.

Used by the fault tests, which run a seeded sample, and by `benchmarks/campaign_checkpoint_crashes.py`, which runs them all.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from checkpoint_writer import write_checkpoint

from orchestrator.checkpoints import slab
from orchestrator.checkpoints.commit import CommitLog, CommitRef
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.restore import restore
from orchestrator.errors import CorruptObject, FencedError, ObjectNotFound, StorageUnavailable
from orchestrator.paths import JobKeys
from orchestrator.storage import CrashPoint, Fault, FaultyStore, MemoryStore, ObjectStore

KEYS = JobKeys("job")
SHAPES = {"w": (7, 5), "b": (11,), "deep": (3, 4, 5), "scale": ()}
SEGMENT_BYTES = 8192
"""Two of the small tensors fill a segment."""
KINDS = ("crash_before", "crash_after", "lost_answer", "unavailable", "duplicate")
TRIES = 3
Commit = tuple[int, int]
"""(epoch, step)."""
Tensors = dict[str, torch.Tensor]
Result = TypeVar("Result")


def state(commit: Commit) -> Tensors:
    """Global tensors that no other commit has."""
    generator = torch.Generator().manual_seed(1000 * commit[0] + commit[1])
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def pieces(tensors: Tensors, world: int, rank: int) -> list[StatePiece]:
    """This rank's share, as ZeRO cuts: one flat interval of the concatenation of all tensors."""
    total = sum(tensor.numel() for tensor in tensors.values())
    low, high, at = total * rank // world, total * (rank + 1) // world, 0
    found = []
    for name, tensor in tensors.items():
        first, last = max(low - at, 0), min(high - at, tensor.numel())
        if first < last:
            flat = tensor.reshape(-1)[first:last]
            found.append(StatePiece(name=name, role="param", global_shape=tuple(tensor.shape), start=first, data=flat))
        at += tensor.numel()
    return found


def upload(store: ObjectStore, commit: Commit, world: int) -> str:
    """What the writers of a checkpoint store; its prefix."""
    prefix = KEYS.checkpoint(commit[1], commit[0], "u")
    for rank in range(world):
        write_checkpoint(store, prefix, rank, pieces(state(commit), world, rank), {"rank": rank}, threads=1)
    return prefix


def make_valid(log: CommitLog, commit: Commit, prefix: str, world: int) -> CommitRef:
    return log.commit(
        epoch=commit[0], step=commit[1], prefix=prefix, num_writers=world, world_size=world, zero_stage=1, job_scalars={"step": commit[1]}
    )


def save(store: ObjectStore, log: CommitLog, commit: Commit, world: int = 2) -> CommitRef:
    return make_valid(log, commit, upload(store, commit, world), world)


def objects(store: ObjectStore) -> dict[str, bytes]:
    """All that the job has stored."""
    return {info.key: store.get(info.key) for info in store.list(KEYS.root)}


def put_back(store: ObjectStore, good: dict[str, bytes]) -> None:
    """What `objects` gave once."""
    found = objects(store)
    for key in found.keys() - good.keys():
        store.delete(key)
    for key, content in good.items():
        if found.get(key) != content:
            store.put(key, content)


def restore_newest(store: ObjectStore, log: CommitLog, commits: tuple[CommitRef, ...], world: int = 1) -> tuple[Commit, Tensors] | None:
    """As the ranks do: the newest that is not damaged, and a mark for each that is."""
    for ref in commits:
        tensors = {name: torch.full(shape, float("nan")) for name, shape in SHAPES.items()}
        try:
            manifest = log.load_manifest(log.read(ref.key))
            for rank in range(world):
                restore(store, manifest, pieces(tensors, world, rank))
        except (CorruptObject, ObjectNotFound) as error:
            log.mark_suspect(ref.key, str(error))
            continue
        return (ref.epoch, ref.step), tensors
    return None


def same(found: tuple[Commit, Tensors] | None, commit: Commit | None) -> bool:
    """It is this commit, bit for bit."""
    if found is None or commit is None:
        return found is None and commit is None
    expected = state(commit)
    return found[0] == commit and all(torch.equal(found[1][name], expected[name]) for name in SHAPES)


@dataclass(frozen=True)
class Course:
    """What the job does: `epochs` supervisors one after the other, each of which saves `saves` times."""

    writers: int
    epochs: int = 2
    saves: int = 2
    segments: str = "one"
    """`one` or `many` for each writer."""
    twin_at: int = 0
    """The first supervisor has one more save under way; its commit arrives before this request of the second one's. 0: there is none."""


COURSES = tuple(
    Course(writers, epochs, saves, segments, twin_at)
    for writers, epochs, saves, segments in ((2, 2, 2, "one"), (3, 2, 1, "many"), (2, 3, 1, "many"))
    for twin_at in (0, 2, 5, 6, 9, 25)
)


@contextmanager
def segments_of(course: Course) -> Iterator[None]:
    before = slab.SEGMENT_BYTES
    slab.SEGMENT_BYTES = SEGMENT_BYTES if course.segments == "many" else before
    try:
        yield
    finally:
        slab.SEGMENT_BYTES = before


@dataclass
class Told:
    """What the world has been told."""

    announced: list[Commit] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    """Restores of something else than what was saved."""
    fenced: int = 0


class Between:
    """`store`, and `deed()` before its `number`-th request."""

    def __init__(self, store: ObjectStore, number: int, deed: Callable[[], None]) -> None:
        self.url, self._store, self._left, self._deed = store.url, store, number, deed

    def __getattr__(self, name: str) -> Any:
        self._left -= 1
        if self._left == 0:
            self._deed()
        return getattr(self._store, name)


def persist(call: Callable[[], Result]) -> Result:
    """As the supervisor's committer: again while the store cannot be reached."""
    for _ in range(TRIES - 1):
        try:
            return call()
        except StorageUnavailable:
            continue
    return call()


def live(course: Course, store: ObjectStore, inner: ObjectStore, told: Told, log_class: type[CommitLog] = CommitLog) -> None:
    """The whole course on `store`; `inner` is it without its faults, where the twin's request arrives."""
    world, late = course.writers, course.saves + 1
    for number in range(course.epochs):
        where: Any = store
        if number == 1 and course.twin_at:
            where = Between(store, course.twin_at, lambda: inner.create(KEYS.commit(1, late), inner.get("the twin's request")))
        log = log_class(where, KEYS)
        epoch = persist(lambda log=log: log.begin_epoch("job:1"))  # type: ignore[misc]
        if number == 0 and course.twin_at:
            _prepare_twin(inner, (epoch.number, late), world)
        found = persist(lambda log=log, where=where, epoch=epoch: restore_newest(where, log, epoch.commits))  # type: ignore[misc]
        if found and not same(found, found[0]):
            told.torn.append(f"epoch {epoch.number} restored {found[0]}")
        step = found[0][1] if found else 0
        for _ in range(course.saves):
            step += 1
            commit = (epoch.number, step)
            prefix = persist(lambda where=where, commit=commit: upload(where, commit, world))  # type: ignore[misc]
            persist(lambda log=log, commit=commit, prefix=prefix: make_valid(log, commit, prefix, world))  # type: ignore[misc]
            told.announced.append(commit)


def _prepare_twin(inner: ObjectStore, commit: Commit, world: int) -> None:
    """All that the late commit needs is stored; its own request is still on its way."""
    aside = MemoryStore()
    for info in inner.list(KEYS.root):
        aside.put(info.key, inner.get(info.key))
    make_valid(CommitLog(aside, KEYS), commit, upload(aside, commit, world), world)
    request = KEYS.commit(*commit)
    for info in aside.list(KEYS.checkpoints):
        inner.put(info.key, aside.get(info.key))
    inner.put("the twin's request", aside.get(request))


@dataclass(frozen=True)
class Point:
    """Where a course is struck."""

    course: Course
    kind: str
    number: int
    """Of the request, from 1."""


def points() -> list[Point]:
    """Every request of every course, struck in every way."""
    found = []
    for course in COURSES:
        inner = MemoryStore()
        calm = FaultyStore(inner)
        with segments_of(course):
            live(course, calm, inner, Told())
        found += [Point(course, kind, number) for kind in KINDS for number in range(1, calm.calls.total() + 1)]
    return found


def sample(seed: int, count: int) -> list[Point]:
    """`count` different points, or all of them."""
    every = points()
    return random.Random(seed).sample(every, min(count, len(every)))


def strike(point: Point, seed: int, log_class: type[CommitLog] = CommitLog) -> list[str]:
    """Live through it; then a new supervisor takes over. Returns what is wrong, as sentences. `log_class`: the protocol under test."""
    inner, told = MemoryStore(), Told()
    store = FaultyStore(inner, [Fault(kind=point.kind, number=point.number)])
    crashed = False
    with segments_of(point.course):
        try:
            live(point.course, store, inner, told, log_class)
        except CrashPoint:
            crashed = True
        except FencedError:
            told.fenced += 1
        wrong = [*told.torn, *_after(inner, told, seed, log_class)]
    if crashed != point.kind.startswith("crash") or told.fenced:
        wrong.append(f"crashed: {crashed}, fenced: {told.fenced}")
    if not crashed and len(told.announced) != point.course.epochs * point.course.saves:
        wrong.append(f"only {told.announced} was announced")
    return wrong


def counting(inner: ObjectStore) -> list[Commit]:
    """The commits that the newest base, and the bases under it, leave in, newest first; worked out apart from the code under test."""
    commits = sorted((_commit_of(info.key) for info in inner.list(KEYS.commits)), reverse=True)
    found: list[Commit] = []
    limit: Commit = (10**9, 10**9)
    for info in reversed(list(inner.list(KEYS.bases))):
        epoch = int(info.key.rsplit("/", 1)[1][:8])
        if epoch <= limit[0]:
            found += [commit for commit in commits if commit[0] == epoch and commit <= limit]
            named = json.loads(inner.get(info.key))["values"]["commit"]
            limit = _commit_of(named) if named else (0, 0)
    return found


def _commit_of(key: str) -> Commit:
    epoch, step = key.rsplit("/", 1)[1].removesuffix(".json").split("-")
    return int(epoch), int(step)


def _after(inner: ObjectStore, told: Told, seed: int, log_class: type[CommitLog]) -> list[str]:
    """A new supervisor begins, restores, saves, commits; and the one after it finds that."""
    expected, wrong = counting(inner), list[str]()
    log = log_class(inner, KEYS)
    epoch = log.begin_epoch("after")
    found = restore_newest(inner, log, epoch.commits, world=1 + seed % 3)
    if not same(found, next(iter(expected), None)):
        wrong.append(f"restored {found and found[0]}, the newest good commit is {expected[:1]}")
    if told.announced and (found is None or found[0] < told.announced[-1]):
        wrong.append(f"restored {found and found[0]}, but {told.announced[-1]} had been announced")
    counted = [(ref.epoch, ref.step) for ref in epoch.commits]
    if counted != expected or not set(counted).issuperset(told.announced):
        wrong.append(f"counted are {counted}, should be {expected}, announced were {told.announced}")
    for ref in epoch.commits:
        if not same(restore_newest(inner, log, (ref,)), (ref.epoch, ref.step)):
            wrong.append(f"({ref.epoch}, {ref.step}) counts, and is not what was saved")
    following = epoch.number, (found[0][1] if found else 0) + 1
    save(inner, log, following)
    again = log_class(inner, KEYS)
    if not same(restore_newest(inner, again, again.begin_epoch("at last").commits), following):
        wrong.append(f"{following} was committed after it, and is not found")
    return wrong
