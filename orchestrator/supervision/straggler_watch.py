"""Hears how long the ranks compute, tells of those that keep the others waiting, and gives the place back where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection

from orchestrator.events import EventKind, IncidentKind
from orchestrator.supervision.attempt import Attempt
from orchestrator.supervision.blame import fields_of
from orchestrator.supervision.chronicle import Chronicle
from orchestrator.supervision.context import RunContext
from orchestrator.supervision.inbox import Inbox, Message
from orchestrator.supervision.preemption import notice
from orchestrator.supervision.stragglers import Finding, Stragglers, Window


class StragglerWatch:
    def __init__(
        self, context: RunContext, inbox: Inbox, chronicle: Chronicle, clock: Callable[[], float], drained: Collection[str]
    ) -> None:  # fmt: skip
        """`drained`: names of the nodes that the job has left as stragglers before; it does not leave them again."""
        self._recovery = context.spec.recovery
        self._stages = context.spec.parallelism.pipeline_parallel_size
        self._inbox = inbox
        self._chronicle = chronicle
        self._clock = clock
        self._drained = set(drained)
        self._attempt: Attempt | None = None

    def hear(self, attempt: Attempt, message: Message) -> None:
        """A `computed` message. What was seen of the ranks before a restart does not count."""
        if attempt is not self._attempt:
            peers = _peers(attempt.world_size, self._stages)
            self._attempt, self._judge = attempt, Stragglers(peers, self._recovery.straggler_factor, self._recovery.straggler_steps)
        window = Window(**{name: message[name] for name in ("steps", "step_s", "time_s")}, seconds=tuple(message["seconds"]))
        for finding in self._judge.hear(window):
            self._tell(attempt, finding)

    def _tell(self, attempt: Attempt, finding: Finding) -> None:
        node, gpu = attempt.hosts.get(finding.rank, ""), attempt.gpus.get(finding.rank, "")
        who = f"rank {finding.rank}" + (f" on node {node}" if node else "")
        if not finding.is_slow:
            self._chronicle.tell(EventKind.STRAGGLER, f"{who} is as fast as the others again", rank=finding.rank)
            return
        sentence = f"{who} takes {finding.ratio:.1f} x the compute time of the others over {finding.steps} steps"
        drains = self._recovery.drain_stragglers and node not in self._drained and bool(node)
        self._chronicle.tell(
            EventKind.STRAGGLER, sentence, rank=finding.rank, ratio=finding.ratio, steps=finding.steps, drains=drains,
            **fields_of(IncidentKind.STRAGGLER, node, gpu),
        )  # fmt: skip
        if drains:
            self._drained.add(node)
            self._inbox.preempt(notice(sentence, None, self._recovery.preemption_grace_s, self._clock()))


def _peers(world_size: int, stages: int) -> list[range]:
    """The stages of a pipeline have different work to do."""
    size = world_size // stages
    return [range(stage * size, (stage + 1) * size) for stage in range(stages)]
