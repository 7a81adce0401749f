"""What follows from a request: positions of the actors of `protocol_model` and contents of the store, by number, each worked out once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from protocol_model import Actor, Calls, Pending, Playback, Request, Scope

from orchestrator.errors import CorruptObject, ObjectExists, ObjectNotFound, OrchestratorError
from orchestrator.storage import MemoryStore


@dataclass
class Machine:
    """Actors and stores by number, and what follows from what; each is worked out once."""

    scope: Scope
    actors: list[Actor] = field(default_factory=list)
    stores: list[frozenset[tuple[str, bytes]]] = field(default_factory=list)
    _numbers: dict[Any, int] = field(default_factory=dict)
    _requests: dict[int, Request | None] = field(default_factory=dict)
    _advanced: dict[Any, int] = field(default_factory=dict)
    _applied: dict[Any, tuple[int, Any]] = field(default_factory=dict)

    def number(self, kind: str, thing: Any) -> int:
        known: list[Any] = getattr(self, kind)
        number = self._numbers.setdefault((kind, thing), len(known))
        if number == len(known):
            known.append(thing)
        return number

    def request(self, actor: int) -> Request | None:
        """What it asks next; None if it has ended."""
        if actor not in self._requests:
            self._requests[actor] = self._run(self.actors[actor])[1]
        return self._requests[actor]

    def _run(self, actor: Actor) -> tuple[Actor, Request | None]:
        """The actor at its next request."""
        calls = Calls(self.scope)
        while actor.call != "ended":
            try:
                call, memory = getattr(calls, actor.call)(Playback(actor.answers), actor)
            except Pending as pending:
                return actor, pending.request
            except OrchestratorError as error:
                call, memory = "ended", actor.memory
                actor = replace(actor, error=type(error).__name__)
            actor = replace(actor, call=call, memory=memory, answers=())
        return actor, None

    def advance(self, actor: int, answer: Any) -> int:
        if (actor, answer) not in self._advanced:
            before = self.actors[actor]
            after, request = self._run(replace(before, answers=(*before.answers, answer)))
            number = self._advanced[actor, answer] = self.number("actors", after)
            self._requests[number] = request
        return self._advanced[actor, answer]

    def again(self, actor: int) -> int:
        """It heard that the store is out of reach, and begins the call anew."""
        before = self.actors[actor]
        return self.number("actors", replace(before, answers=(), memory=replace(before.memory, tries=before.memory.tries + 1)))

    def knowing(self, actor: int, **known: Any) -> int:
        before = self.actors[actor]
        return self.number("actors", replace(before, memory=replace(before.memory, **known)))

    def apply(self, store: int, request: Request) -> tuple[int, Any]:
        """(store after it, answer): (empty or an error's name, value or message)."""
        if (store, request) not in self._applied:
            memory = self.opened(store)
            try:
                value = getattr(memory, request[0])(*request[1:])
                answer = "", tuple(value) if request[0] == "list" else value
            except (ObjectExists, ObjectNotFound, CorruptObject) as error:
                answer = type(error).__name__, str(error)
            self._applied[store, request] = self.kept(memory) if request[0] in ("put", "create", "delete") else store, answer
        return self._applied[store, request]

    def opened(self, store: int) -> MemoryStore:
        memory = MemoryStore("model")
        for key, data in self.stores[store]:
            memory.put(key, data)
        return memory

    def kept(self, memory: MemoryStore) -> int:
        return self.number("stores", frozenset((info.key, memory.get(info.key)) for info in memory.list("")))
