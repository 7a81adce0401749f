"""What ranks had staged when they died goes to the store still: by their node's uploader, or by a peer's if their node is lost too."""

from __future__ import annotations

from orchestrator.supervision.attempt import Attempt
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.worker_group import Group

Part = tuple[int, str]
"""(writer, key prefix)."""


class Rescue:
    """Of one attempt, whose ranks are gone."""

    def __init__(self, context: RunContext, group: Group, attempt: Attempt) -> None:
        self._context = context
        self._group = group
        self._attempt = attempt
        self._asked: dict[int, set[Part]] = {}
        """Lost bundle -> what its peer was asked for."""
        self._adopted: dict[int, set[Part]] = {}
        """Lost bundle -> what its peer stores in its place."""

    def steps(self) -> list[int]:
        """Those that all ranks had staged, are not in the store yet, and will be. Has the peers of lost nodes take over."""
        missing, unsaved = self._group.missing(), self._attempt.unsaved()
        lost = {rank: bundle for bundle in missing for rank in self._context.ranks(bundle)}
        for bundle in sorted(missing):
            asked, adopted = self._asked.setdefault(bundle, set()), self._adopted.setdefault(bundle, set())
            parts = {(writer, prefix) for (_, prefix), writers in unsaved.items() for writer in writers if lost.get(writer) == bundle}
            if new := parts - asked:
                asked |= new
                adopted |= self._group.adopt(bundle, new)
        coming = {part for bundle in missing if self._group.peer(bundle) not in missing for part in self._adopted[bundle]}
        return [step for (step, prefix), writers in unsaved.items() if all(w not in lost or (w, prefix) in coming for w in writers)]
