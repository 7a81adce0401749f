"""The breadth-first search over `protocol_model`, and what must hold in every state and at every request."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from protocol_machine import Machine
from protocol_model import KEYS, WRITERS, Actor, Commit, Scope, content_of, prefix_of, upload, whole

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.errors import CorruptObject, ObjectNotFound
from orchestrator.storage import MemoryStore

DAMAGEABLE = ("/base/", "/commits/", "/MANIFEST", "/seg-")


class State(NamedTuple):
    store: int
    actors: tuple[int, ...]
    faults: int
    damages: int
    damaged: str
    """Key of the object that was damaged."""
    ever: frozenset[Commit]
    """Every commit that has counted at some moment."""


class View(NamedTuple):
    """What a reader finds that reads a store which nobody changes meanwhile."""

    chain: tuple[Commit, ...]
    torn: tuple[Commit, ...]
    """Those of the chain whose bytes are not what was saved."""
    suspects: frozenset[Commit]
    bases: tuple[tuple[str, bytes], ...]


class Violation(Exception):
    """An invariant does not hold."""


@dataclass
class Search:
    scope: Scope
    machine: Machine = field(init=False)
    _views: dict[int, View] = field(default_factory=dict)
    _parents: dict[State, tuple[State, str] | None] = field(default_factory=dict)
    transitions: int = 0

    def __post_init__(self) -> None:
        self.machine = Machine(self.scope)

    @property
    def states(self) -> int:
        return len(self._parents)

    @property
    def num_stores(self) -> int:
        return len({state.store for state in self._parents})

    def explore(self) -> list[str]:
        """The shortest way into a violation, request by request, and what is violated; empty if there is none."""
        machine = self.machine
        actors = tuple(machine.number("actors", actor) for actor in self.scope.actors)
        first = State(machine.kept(MemoryStore()), actors, self.scope.faults, self.scope.damages, "", frozenset())
        self._parents[first] = None
        frontier = deque([first])
        while frontier:
            state = frontier.popleft()
            for label, who, following in self._following(state):
                self.transitions += 1
                following = following._replace(ever=self._counted(following))
                try:
                    self._check_request(state, who, label, following)
                    if following in self._parents:
                        continue
                    self._check_state(following, who)
                except Violation as violation:
                    return [*self._way_to(state), label, f"violated: {violation}"]
                self._parents[following] = state, label
                frontier.append(following)
        return []

    def _way_to(self, state: State) -> list[str]:
        labels = []
        at: tuple[State, str] | None = self._parents[state]
        while at:
            labels.append(at[1])
            at = self._parents[at[0]]
        return labels[::-1]

    # what may happen next

    def _following(self, state: State) -> Iterator[tuple[str, int, State]]:
        """(what happens, which actor does it or -1, state after it)."""
        for who, number in enumerate(state.actors):
            if not self._may_move(state, who):
                continue
            actor = self._ready(state, who, number)
            request = self.machine.request(actor)
            if request is None:
                continue
            name = f"{self.machine.actors[number].name}: {request[0]} {request[1].removeprefix(KEYS.root)}"
            store, answer = self.machine.apply(state.store, request)
            yield name, who, _moved(state, who, self.machine.advance(actor, answer), store)
            if state.faults:
                tried_again = self.machine.again(actor)
                yield f"{name} (lost)", who, _moved(state, who, tried_again, state.store)._replace(faults=state.faults - 1)
                if store != state.store:
                    yield f"{name} (answer lost)", who, _moved(state, who, tried_again, store)._replace(faults=state.faults - 1)
        if state.damages:
            yield from self._damage(state)

    def _may_move(self, state: State, who: int) -> bool:
        actor = self.machine.actors[state.actors[who]]
        if not self.scope.split_writers or (actor.call == "commit" and actor.answers) or actor.call not in ("commit", "upload"):
            return True
        if actor.call == "commit":
            return all(w.memory.step > actor.memory.step for w in self._writers(state, actor.name))
        owner = self._owner(state, actor)
        if owner.memory.epoch == 0 or owner.call in ("begin", "restore"):
            return False
        return actor.memory.epoch == 0 or bool(actor.answers) or actor.memory.step < owner.memory.step + owner.memory.left

    def _writers(self, state: State, owner: str) -> list[Actor]:
        found = [self.machine.actors[number] for number in state.actors]
        return [actor for actor in found if actor.name.startswith(f"{owner}-")]

    def _owner(self, state: State, writer: Actor) -> Actor:
        name = writer.name.split("-")[0]
        return next(actor for actor in map(self.machine.actors.__getitem__, state.actors) if actor.name == name)

    def _ready(self, state: State, who: int, number: int) -> int:
        """The actor, knowing what it learns at the moment in which it begins a call."""
        actor = self.machine.actors[number]
        if actor.answers:
            return number
        if actor.call in ("begin", "read", "look"):
            return self.machine.knowing(number, floor=self._announced(state))
        if actor.call == "upload" and actor.memory.epoch == 0:
            owner = self._owner(state, actor).memory
            return self.machine.knowing(number, epoch=owner.epoch, step=owner.step)
        return number

    def _damage(self, state: State) -> Iterator[tuple[str, int, State]]:
        for key, data in sorted(self.machine.stores[state.store]):
            if any(part in key for part in DAMAGEABLE):
                middle = len(data) // 2
                flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
                store, _ = self.machine.apply(state.store, ("put", key, flipped))
                yield f"{key.removeprefix(KEYS.root)} is damaged", -1, state._replace(store=store, damages=state.damages - 1, damaged=key)

    # what must hold

    def _counted(self, state: State) -> frozenset[Commit]:
        chain = self.view(state.store).chain
        return state.ever if state.ever.issuperset(chain) else state.ever.union(chain)

    def _check_state(self, state: State, who: int) -> None:
        view, announced = self.view(state.store), self._announced(state)
        harmed = {commit for commit in state.ever | announced if _concerns(state.damaged, commit)}
        # a commit that was retired while the answer to its own create was lost is created again, without its bytes
        torn = set(view.torn) & set(sorted(view.chain)[-self.scope.keep_last :]) - harmed
        _demand(not torn, f"(a) a reader sees {sorted(torn)}, which is not what was saved")
        newest = sorted(announced | set(view.chain))[-self.scope.keep_last :]  # all of them where keep_last is 0
        lost = announced & set(newest) - set(view.chain) - view.suspects - harmed
        _demand(not lost, f"(b) {sorted(lost)} was announced and is lost; the chain is {view.chain}")
        self._check_owners(state)
        if who >= 0:
            self._check_restored(state, self.machine.actors[state.actors[who]], harmed | view.suspects)

    def _announced(self, state: State) -> frozenset[Commit]:
        return frozenset(commit for number in state.actors for commit in self.machine.actors[number].memory.announced)

    def _check_owners(self, state: State) -> None:
        actors = [self.machine.actors[number] for number in state.actors]
        epochs = [actor.memory.epoch for actor in actors if actor.memory.epoch and "-" not in actor.name]
        _demand(len(epochs) == len(set(epochs)), f"(c) two supervisors own one epoch: {sorted(epochs)}")

    def _check_request(self, before: State, who: int, label: str, after: State) -> None:
        if after.store == before.store or who < 0:
            return
        old, new = self.view(before.store), self.view(after.store)
        _demand(set(old.bases) <= set(new.bases), "(d) a base has changed")
        epoch = self._epoch_of(self.machine.actors[before.actors[who]], label)
        fenced = epoch and any(key > KEYS.base(epoch) for key, _ in old.bases)
        if not fenced or "/base/" in after.damaged or " suspect/" in label:
            return
        seen = (old.chain[:1], new.chain[:1]) if self.scope.keep_last else (old.chain, new.chain)
        _demand(seen[0] == seen[1], f"(e) epoch {epoch} is over and changed the chain from {old.chain} to {new.chain}")

    @staticmethod
    def _epoch_of(actor: Actor, label: str) -> int:
        return int(label.split(" base/")[1][:8]) if " base/" in label else actor.memory.epoch

    def _check_restored(self, state: State, actor: Actor, excused: set[Commit]) -> None:
        """What an actor has just read is a checkpoint that counted, whole, and no older than what was announced when it began."""
        memory = actor.memory
        if actor.call in ("begin", "restore", "read", "look") or "-" in actor.name or (actor.call == "ended" and actor.error):
            return
        if memory.got:
            _demand(memory.content == content_of(memory.got), f"(a) {actor.name} read {memory.content!r} as {memory.got}")
            counted = memory.got in state.ever or "/base/" in state.damaged  # then the epoch before stands in, all it committed counts
            _demand(counted, f"(a) {actor.name} read {memory.got}, which has never counted")
        newest = max(memory.floor - excused, default=None)
        _demand(newest is None or bool(memory.got and memory.got >= newest), f"(b) {actor.name} read {memory.got}, announced was {newest}")

    def view(self, store: int) -> View:
        if store not in self._views:
            memory = self.machine.opened(store)
            log = self.scope.log(memory, KEYS, nonce=lambda: "view")
            suspects = frozenset(_commit_in(info.key) for info in memory.list(KEYS.suspects))
            refs = log.chain()
            chain = tuple((ref.epoch, ref.step) for ref in refs)
            torn = tuple((ref.epoch, ref.step) for ref in refs if not _intact(memory, log, ref))
            bases = tuple((info.key, memory.get(info.key)) for info in memory.list(KEYS.bases))
            self._views[store] = View(chain, torn, suspects, bases)
        return self._views[store]

    # from everywhere

    def goes_on(self) -> int:
        """From every store that was reached, as after a crash of all actors, a new supervisor comes to a new commit. Returns how many.

        Raises Violation.
        """
        stores = sorted({state.store for state in self._parents})
        for store in stores:
            memory, seen = self.machine.opened(store), self.view(store)
            log = CommitLog(memory, KEYS, nonce=lambda: "new")
            epoch = log.begin_epoch("new")
            good = next((ref for ref in epoch.commits if _intact(memory, log, ref)), None)
            kept = [commit for commit in seen.chain if commit not in seen.torn]
            _demand((good and (good.epoch, good.step)) == next(iter(kept), None), f"a new supervisor found {good}, not {kept[:1]}")
            commit = epoch.number, (good.step if good else 0) + 1
            for rank in range(WRITERS):
                upload(memory, commit, rank)
            ref = log.commit(
                epoch=commit[0], step=commit[1], prefix=prefix_of(commit), num_writers=WRITERS, world_size=WRITERS, zero_stage=1,
                job_scalars={},
            )  # fmt: skip
            _demand(log.chain()[0] == ref and _intact(memory, log, ref), "a new commit does not count")
        return len(stores)


def _moved(state: State, who: int, actor: int, store: int) -> State:
    return state._replace(store=store, actors=(*state.actors[:who], actor, *state.actors[who + 1 :]))


def _commit_in(key: str) -> Commit:
    epoch, step = key.rsplit("/", 1)[1].removesuffix(".json").split("-")
    return int(epoch), int(step)


def _concerns(damaged: str, commit: Commit) -> bool:
    return bool(damaged) and (damaged == KEYS.commit(*commit) or damaged.startswith(prefix_of(commit)))


def _intact(memory: MemoryStore, log: CommitLog, ref: Any) -> bool:
    try:
        return whole(memory, log.load_manifest(ref)) == content_of((ref.epoch, ref.step))
    except (CorruptObject, ObjectNotFound):
        return False


def _demand(holds: bool, sentence: str) -> None:
    if not holds:
        raise Violation(sentence)
