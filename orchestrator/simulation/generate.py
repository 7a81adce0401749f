"""Synthetic traces, so that no scheduler is tuned to one real trace. Pure; the same seed gives the same trace.

Run times are heavy-tailed: log-normal with a median of half an hour and a mean of some hours, as published of Philly (Jeon et al.,
Analysis of Large-Scale Multi-Tenant GPU Clusters, ATC 2019) and Helios (Hu et al., Characterization and Prediction of Deep Learning
Workloads, SC 2021); larger gangs run longer. Jobs come at some hours more than at others, and in part in sweeps: equal small gangs of one
tenant that take about as long.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.errors import ConfigError, nearest
from orchestrator.simulation.model import TraceJob

T = TypeVar("T")
DAY_S = 86_400.0
SHORTEST_S, LONGEST_S = 60.0, 10 * DAY_S
MEDIAN_S, SIGMA = 1800.0, 1.9
"""Of the run times of single GPUs; sigma of their logarithm."""
WIDEST_IN_SWEEPS = 8


@dataclass(frozen=True, kw_only=True)
class Recipe:
    load: float = 0.86
    """GPU-seconds asked for, by those that the cluster has from the first to the last submission."""
    sizes: Mapping[int, float] = field(default_factory=lambda: {1: 0.70, 2: 0.06, 4: 0.06, 8: 0.12, 16: 0.03, 32: 0.02, 64: 0.01})
    """Share of the jobs by number of GPUs."""
    tenants: Mapping[str, float] = field(default_factory=lambda: {"": 1.0})
    """Share of the jobs by tenant."""
    in_sweeps: float = 0.3
    """Share of the jobs that come in sweeps."""
    sweep_jobs: int = 10
    """Of a sweep, in the mean."""
    elastic: float = 0.0
    """Share of the jobs on 2 GPUs and more that run on any power of two from a quarter to twice of what they ask for."""


RECIPES: Mapping[str, Recipe] = {
    "plain": Recipe(),
    "bursty": Recipe(in_sweeps=0.9, sweep_jobs=80),
    "small": Recipe(sizes={1: 0.93, 2: 0.02, 4: 0.015, 8: 0.025, 16: 0.005, 32: 0.005}),
    "tenants": Recipe(tenants={"vision": 0.40, "speech": 0.25, "language": 0.20, "robots": 0.10, "chemistry": 0.05}, load=0.95),
    "overloaded": Recipe(load=1.15),
    "elastic": Recipe(elastic=1.0),
}


def generate(name: str, *, jobs: int, gpus: int, seed: int) -> tuple[TraceJob, ...]:
    """A trace of so many jobs for a cluster of so many GPUs, by submission, in whole seconds. Sizes above a quarter of the cluster are left
    out.

    Raises ConfigError if there is no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe {name!r}; there are {', '.join(RECIPES)}.{nearest(name, RECIPES)}")
    recipe, draws = RECIPES[name], random.Random(f"{name} {seed}")
    drafts = _drafts(recipe, jobs, max(1, gpus // 4), draws)
    span_s = sum(size * duration_s for _, _, size, duration_s in drafts) / (gpus * recipe.load)
    drafts = sorted((_by_day(at * span_s), tenant, size, duration_s) for at, tenant, size, duration_s in drafts)
    digits = len(str(jobs - 1))
    return tuple(
        TraceJob(
            id=f"{index:0{digits}d}", submit_s=round(at), tenant=tenant, gpus=size, duration_s=round(duration_s),
            sizes=_legal(size, gpus) if size > 1 and draws.random() < recipe.elastic else (),
        )
        for index, (at, tenant, size, duration_s) in enumerate(drafts)
    )  # fmt: skip


def _drafts(recipe: Recipe, jobs: int, widest: int, draws: random.Random) -> list[tuple[float, str, int, float]]:
    """(place in time between 0 and 1, tenant, GPUs, run time) of each job."""
    sizes = {size: share for size, share in recipe.sizes.items() if size <= widest}
    drafts: list[tuple[float, str, int, float]] = []
    sweeps = recipe.in_sweeps / recipe.sweep_jobs  # of a single job and a sweep, which comes in this proportion
    chance = sweeps / (sweeps + 1 - recipe.in_sweeps)
    while len(drafts) < jobs:
        at, tenant, size = draws.random(), _one_of(recipe.tenants, draws), _one_of(sizes, draws)
        typical_s = draws.lognormvariate(math.log(MEDIAN_S * size**0.4), SIGMA)
        count = 1 + int(draws.expovariate(1 / recipe.sweep_jobs)) if size <= WIDEST_IN_SWEEPS and draws.random() < chance else 1
        for _ in range(min(count, jobs - len(drafts))):
            duration_s = typical_s * (draws.lognormvariate(0.0, 0.5) if count > 1 else 1.0)
            drafts.append((at, tenant, size, min(max(duration_s, SHORTEST_S), LONGEST_S)))
    return drafts


def _by_day(at_s: float) -> float:
    """Moves times so that the rate of arrivals goes between 0.6 and 2.5 of its mean in the course of a day."""
    return at_s + 0.6 * DAY_S / (2 * math.pi) * (1 - math.cos(2 * math.pi * at_s / DAY_S))


def _legal(size: int, gpus: int) -> tuple[int, ...]:
    candidates = (size // 4, size // 2, size, size * 2)
    return tuple(count for count in candidates if 1 <= count <= gpus)


def _one_of(shares: Mapping[T, float], draws: random.Random) -> T:
    return draws.choices(list(shares), weights=list(shares.values()))[0]
