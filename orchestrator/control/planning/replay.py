"""The scheduler's log, made again: do the same inputs give the same plans?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.control.planning.planlog import decision_of, read_log
from orchestrator.control.scheduler import Plan, plan_ahead


@dataclass(frozen=True, kw_only=True)
class Replayed:
    plans: int = 0
    """In the log."""
    differing: tuple[str, ...] = ()
    """Of those that came out otherwise, or whose inputs are not what their hash says: a sentence each."""


def replay(folder: Path, decide: Callable[..., Plan] = plan_ahead) -> Replayed:
    """Make every plan of the log below `folder` (`Home.plans`) again."""
    count, differing = 0, []
    for recorded in read_log(folder):
        count += 1
        inputs = recorded.inputs
        again = decision_of(decide(inputs.cluster, inputs.queue, inputs.running, inputs.usage, recorded.now, inputs.policy))
        if not recorded.intact:
            differing.append(f"plan {count} at {recorded.now:.3f}: its inputs are not those of hash {recorded.hash}")
        elif again != recorded.decision:
            names = [name for name in again if again[name] != recorded.decision[name]]
            differing.append(f"plan {count} at {recorded.now:.3f}: {', '.join(names)} came out otherwise")
    return Replayed(plans=count, differing=tuple(differing))
