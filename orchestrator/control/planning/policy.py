"""The policy of a control plane: kept among the facts of the job store, changed by `Client.set_policy`, read in every round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from orchestrator.control.records.store import JobStore
from orchestrator.control.scheduler import Policy
from orchestrator.control.scheduler.settings import policy_of
from orchestrator.spec import to_dict

KEY = "policy"
"""Of the job store's facts."""


@dataclass(frozen=True, kw_only=True)
class ChosenPolicy:
    name: str
    """Of the file that its settings came from."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All of them, JSON-ready."""

    @cached_property
    def policy(self) -> Policy:
        """Raises ConfigError with the setting and the nearest valid name."""
        return policy_of(self.settings)

    def completed(self) -> ChosenPolicy:
        """With every setting that it has none for; checked."""
        return ChosenPolicy(name=self.name, settings=to_dict(self.policy))


DEFAULT = ChosenPolicy(
    name="preemptive",
    settings={"mode": "preemptive", "levels": [72_000, 720_000], "reserve_after_s": 28_800, "max_reservations": 8, "max_doublings": 2},
).completed()
"""As shipped (`conf/scheduler/preemptive.yaml`): of a control plane that was told nothing."""


def chosen_policy(store: JobStore) -> ChosenPolicy:
    found = store.meta(KEY)
    return DEFAULT if found is None else ChosenPolicy(name=found["name"], settings=found["settings"])


def keep_policy(store: JobStore, chosen: ChosenPolicy) -> ChosenPolicy:
    """From now on, and for every later controller of the store. Raises ConfigError."""
    whole = chosen.completed()
    store.set_meta(KEY, {"name": whole.name, "settings": dict(whole.settings)})
    return whole
