"""An explicit-state search of the commit protocol, with the real `CommitLog` as its program.

An actor (a supervisor, a writer, a reader) is the real code, run against a store that plays back the answers it has had so far and
stops it at the first request that has none. So an actor's position is the list of answers of the call it is in, what it knows between
two calls is its `Memory`, and one transition is one request, done on a real `MemoryStore`. The search goes breadth-first over
(content of the store, position of every actor): every interleaving, each state once.

A crash at any request needs no transition of its own: an actor that never moves again has crashed, and every state is left by every
set of actors that go on without the others. A twin that was cut off and wakes up late is an actor that moves late. What is added are
requests whose answer is lost, or that never arrive (`faults` of them in a run; the actor then tries the call again, as the supervisor's
committer does), and a byte that turns over in an object at rest (`damages`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.manifest import Manifest, Segment, TensorSlice, WriterIndex, crc64, encode
from orchestrator.checkpoints.plan import Box
from orchestrator.errors import CorruptObject, ObjectExists, ObjectNotFound
from orchestrator.paths import JobKeys, index_key, segment_key
from orchestrator.storage import ObjectInfo

KEYS = JobKeys("job")
WRITERS = 2
Commit = tuple[int, int]
"""(epoch, step)."""
Request = tuple[Any, ...]


class Pending(BaseException):
    """The code under test has come to a request that was not answered yet."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request = request


class Playback:
    """A store that gives the answers it is told, in order; an answer that is an error is raised."""

    url = "memory://model"

    def __init__(self, answers: tuple[Any, ...]) -> None:
        self._answers = iter(answers)

    def _ask(self, *request: Any) -> Any:
        for kind, value in self._answers:
            if kind:
                raise {error.__name__: error for error in (ObjectExists, ObjectNotFound, CorruptObject)}[kind](value)
            return value
        raise Pending(request)

    def put(self, key: str, data: bytes) -> None:
        self._ask("put", key, bytes(data))

    def create(self, key: str, data: bytes) -> None:
        self._ask("create", key, bytes(data))

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        return self._ask("get", key, start, length)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(self._ask("list", prefix))

    def delete(self, key: str) -> None:
        self._ask("delete", key)


@dataclass(frozen=True)
class Memory:
    """What a process knows between two calls."""

    epoch: int = 0
    commits: tuple[str, ...] = ()
    """Keys that the epoch may go on from, newest first."""
    step: int = 0
    left: int = 0
    """Steps still to be saved."""
    tries: int = 0
    announced: tuple[Commit, ...] = ()
    floor: frozenset[Commit] = frozenset()
    """What was announced when it began to read."""
    got: Commit | None = None
    """What it restored."""
    content: bytes = b""


@dataclass(frozen=True)
class Actor:
    name: str
    call: str
    """What it is doing: a key of `CALLS`, or `ended`."""
    memory: Memory
    answers: tuple[Any, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Scope:
    """What takes part in a search, and what may go wrong."""

    actors: tuple[Actor, ...]
    faults: int = 0
    damages: int = 0
    keep_last: int = 0
    split_writers: bool = False
    """The writers are actors of their own, after their supervisor in `actors`; else a supervisor does their requests."""
    log: Callable[..., CommitLog] = CommitLog


def supervisor(name: str, steps: int) -> Actor:
    return Actor(name, "begin", Memory(left=steps))


def writer(name: str) -> Actor:
    return Actor(name, "upload", Memory())


def reader(name: str, whole: bool = True) -> Actor:
    """`whole`: reads the bytes too."""
    return Actor(name, "read" if whole else "look", Memory())


def content_of(commit: Commit) -> bytes:
    """What both writers together store: it tells epoch and step."""
    return bytes(commit) * WRITERS


@dataclass
class Calls:
    """What an actor does: each method is a stretch of real code between two points where the process knows `Memory` and no more."""

    scope: Scope

    def log(self, store: Playback, actor: Actor) -> CommitLog:
        return self.scope.log(store, KEYS, nonce=lambda: f"{actor.name}-{actor.memory.tries}", threads=1)

    def begin(self, store: Playback, actor: Actor) -> tuple[str, Memory]:
        epoch = self.log(store, actor).begin_epoch("job:1")
        memory = replace(actor.memory, epoch=epoch.number, commits=tuple(ref.key for ref in epoch.commits))
        return ("restore" if memory.commits else self._next(memory)), memory

    def restore(self, store: Playback, actor: Actor) -> tuple[str, Memory]:
        """As the ranks do: the newest that is not damaged, and marks for those that are."""
        log = self.log(store, actor)
        for key in actor.memory.commits:
            try:
                ref = log.read(key)
                content = whole(store, log.load_manifest(ref))
            except (CorruptObject, ObjectNotFound) as error:
                log.mark_suspect(key, type(error).__name__)
                continue
            memory = replace(actor.memory, commits=(), step=ref.step, got=(ref.epoch, ref.step), content=content)
            return self._next(memory), memory
        return "ended", replace(actor.memory, commits=())

    def _next(self, memory: Memory) -> str:
        if not memory.left:
            return "ended"
        return "commit" if self.scope.split_writers else "save"

    def save(self, store: Playback, actor: Actor) -> tuple[str, Memory]:
        for rank in range(WRITERS):
            upload(store, (actor.memory.epoch, actor.memory.step + 1), rank)
        return "commit", actor.memory

    def upload(self, store: Playback, actor: Actor) -> tuple[str, Memory]:
        memory = actor.memory
        upload(store, (memory.epoch, memory.step + 1), int(actor.name[-1]))
        return "upload", replace(memory, step=memory.step + 1)

    def commit(self, store: Playback, actor: Actor) -> tuple[str, Memory]:
        memory = actor.memory
        commit = memory.epoch, memory.step + 1
        self.log(store, actor).commit(
            epoch=memory.epoch, step=memory.step + 1, prefix=prefix_of(commit), num_writers=WRITERS, world_size=WRITERS, zero_stage=1,
            job_scalars={},
        )  # fmt: skip
        memory = replace(memory, step=memory.step + 1, left=memory.left - 1, announced=(*memory.announced, commit))
        return ("retire" if self.scope.keep_last else self._next(memory)), memory

    def retire(self, store: Playback, actor: Actor) -> tuple[str, Memory]:
        """A tombstone, the commit, its bytes, the tombstone; without the grace that real retention gives to readers."""
        for ref in self.log(store, actor).chain()[self.scope.keep_last :]:
            tombstone = f"{KEYS.root}tombstones/{ref.prefix.removeprefix(KEYS.checkpoints).rstrip('/')}.json"
            store.put(tombstone, b"{}")
            store.delete(ref.key)
            for info in store.list(ref.prefix):
                store.delete(info.key)
            store.delete(tombstone)
        return self._next(actor.memory), actor.memory

    def read(self, store: Playback, actor: Actor) -> tuple[str, Memory]:
        log = self.log(store, actor)
        for ref in log.chain():
            try:
                content = whole(store, log.load_manifest(ref))
            except (CorruptObject, ObjectNotFound):
                continue
            return "ended", replace(actor.memory, got=(ref.epoch, ref.step), content=content)
        return "ended", actor.memory

    def look(self, store: Playback, actor: Actor) -> tuple[str, Memory]:
        found = [(ref.epoch, ref.step) for ref in self.log(store, actor).chain()]
        got = found[0] if found else None
        return "ended", replace(actor.memory, got=got, content=content_of(got) if got else b"")


def prefix_of(commit: Commit) -> str:
    return KEYS.checkpoint(commit[1], commit[0], "u")


def upload(store: Playback, commit: Commit, rank: int) -> None:
    """A writer's two requests: its segment, then its index."""
    key, data = segment_key(prefix_of(commit), rank, 0), bytes(commit)
    store.put(key, data)
    segment = Segment(key=key, num_bytes=len(data), block_crcs=(crc64(data),))
    part = TensorSlice(
        name="w", role="param", dtype="uint8", global_shape=(2 * WRITERS,), boxes=(Box((2 * rank,), (2,)),), segment=key, offset=0,
        num_bytes=len(data),
    )  # fmt: skip
    store.put(index_key(prefix_of(commit), rank), encode(WriterIndex(writer=rank, segments=(segment,), slices=(part,))))


def whole(store: Any, manifest: Manifest) -> bytes:
    """All bytes of a checkpoint, verified block by block as `restore` does. Raises CorruptObject, ObjectNotFound."""
    found = b""
    for segment in manifest.segments:
        data = store.get(segment.key)
        if (crc64(data),) != segment.block_crcs:
            raise CorruptObject(segment.key)
        found += data
    return found
