"""What a job has had of the cluster, and what the scheduler has told it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Placement = tuple[tuple[str, int], ...]
"""(Ray node id, number of workers) of each bundle."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """What a job has had so far: until it last left its place, in width x seconds, where a worker's width is its GPUs, or 1 on CPUs."""

    attained: float = 0.0
    ran_s: float = 0.0
    """Time that it held a place since its submission or its newest `resume`."""
    waited_s: float = 0.0
    """In the waits that are over, since then."""
    preemptions: int = 0
    """By the scheduler, since then."""
    resized_s: float | None = None
    """When its number of workers was last changed by the scheduler."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The scheduler's order to a job to save and to leave its place. It stands in the row until the job trains again, or ends."""

    kind: str
    """`preempt`: its place goes to another; `resize`: it goes on at `placement`."""
    why: str
    for_job: str = ""
    """Who gets what it leaves; empty: nobody."""
    cost: float = 0.0
    """Service that the scheduler expected it to lose."""
    placement: Placement = ()
    left: bool = False
    """It has left."""
    ledger: dict[str, float] = field(default_factory=dict)
    """Its worker-seconds by bucket when it was told; what it lost is counted from here."""
    ledger_s: float = 0.0
    """Until when they were counted."""


def order_to_dict(order: Order | None) -> dict[str, Any] | None:
    """JSON-ready."""
    return None if order is None else {**vars(order), "placement": placement_to_list(order.placement)}


def order_from_dict(values: Mapping[str, Any] | None) -> Order | None:
    return None if values is None else Order(**{**known(Order, values), "placement": placement_from_list(values.get("placement"))})


def placement_to_list(placement: Placement) -> list[list[Any]]:
    return [list(bundle) for bundle in placement]


def placement_from_list(values: Iterable[Any] | None) -> Placement:
    return tuple((str(node), int(workers)) for node, workers in values or ())


def known(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that this version of the class has."""
    names = {f.name for f in dataclasses.fields(cls)}
    return {key: value for key, value in values.items() if key in names}
