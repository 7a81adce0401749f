"""Claim: whatever the moment, a plan of the scheduler has every property that it is to have, and so has what comes of it over time.

    make campaign NAME=scheduler N=100000 SEED=0

Instances are made by their number from the seed: moments of a random cluster, and every 20th a story of a small one from its first job to
its last. What fails is printed as Python, as small as it can be made. Instances that are done are kept under `build/` and not tried again.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from record import Kept, options, publish, table

from scheduling import lives  # isort: skip  - `record` puts the tests on the path
from scheduling.forms import code, shrunk
from scheduling.properties import PROPERTIES
from scheduling.strategies import Moment, moment

BATCH = 200
STORIES = 20
"""One instance of so many is a story."""
Found = list[tuple[str, str]]
"""(property, what is amiss)."""


def instance(seed: int, number: int, did: Counter[str]) -> Found:
    rng = Random(f"{seed} {number}")
    if number % STORIES:
        return _of_a_moment(moment(rng), did)
    return _of_a_story(rng, did)


def _of_a_moment(one: Moment, did: Counter[str]) -> Found:
    try:
        plan = one.plan()
    except Exception:  # noqa: BLE001 - a finding
        return [("planned", f"{traceback.format_exc(limit=-2)}\n{code(shrunk(one, _raises))}")]
    did.update(_done(plan))
    found = []
    for holds in PROPERTIES:
        amiss = next(_guarded(holds, one, plan), None)
        if amiss:
            small = shrunk(one, lambda other, holds=holds: any(holds(other, other.plan())))  # type: ignore[misc]
            found.append((holds.__name__, f"{next(holds(small, small.plan()))}\n{code(small)}"))
    return found


def _of_a_story(rng: Random, did: Counter[str]) -> Found:
    mode = rng.choice(("fifo", "batch", "preemptive"))
    calmly = mode != "preemptive" and rng.randrange(2) == 1
    told = lives.story(rng, mode, calmly=calmly)
    try:
        life = lives.live(told, check=True)
        found = [("led to", said) for said in life.found]
        found += [(holds.__name__, said) for holds in lives.LIVES for said in holds(told, life)]
        found += [("head_keeps_its_promise", said) for said in lives.head_keeps_its_promise(told, life) if calmly]
        found += [("planning more often changes nothing", "")] if lives.live(told, step_s=900.0).log != life.log else []
        found += [("a controller may forget", "")] if lives.live(told, forget=True).log != life.log else []
    except Exception:  # noqa: BLE001 - a finding
        return [("planned", traceback.format_exc(limit=-2))]
    for _, plan in life.plans:
        did.update(_done(plan))
    return found


def _raises(one: Moment) -> bool:
    try:
        one.plan()
    except Exception:  # noqa: BLE001 - a finding
        return True
    return False


def _guarded(holds: Callable[[Moment, Any], Iterator[str]], one: Moment, plan: Any) -> Iterator[str]:
    try:
        yield from holds(one, plan)
    except Exception:  # noqa: BLE001 - a finding
        yield traceback.format_exc(limit=-2)


def _done(plan: Any) -> dict[str, int]:
    kinds = ("starts", "preempts", "resizes", "reservations", "order")
    return {"plans": 1, **{kind: len(getattr(plan, kind)) for kind in kinds}}


def main() -> int:
    asked = options(100_000)
    kept = Kept("campaign-scheduler", asked.seed)
    for first in range(len(kept.rows) * BATCH, asked.n, BATCH):
        did = Counter[str]()
        failures = [
            {"number": number, "property": name, "said": said}
            for number in range(first, first + BATCH)
            for name, said in instance(asked.seed, number, did)
        ]
        kept.add({"first": first, "did": did, "failures": failures})
        for failure in failures:
            print(f"{failure['number']} {failure['property']}: {failure['said']}", flush=True)
        print(f"{first + BATCH}/{asked.n}  {len(failures)} failures", flush=True)
    return report(kept.rows, asked.seed)


def report(rows: list[dict[str, Any]], seed: int) -> int:
    count = len(rows) * BATCH
    failed = Counter(failure["property"] for row in rows for failure in row["failures"])
    bad = {failure["number"] for row in rows for failure in row["failures"]}
    did: Counter[str] = sum((Counter(row["did"]) for row in rows), Counter())
    names = [holds.__name__ for holds in (*PROPERTIES, *lives.LIVES)]
    said = ", ".join(f"{did[kind]} {kind if kind != 'order' else 'jobs that wait'}" for kind in did)
    return publish(
        "scheduler", "Every plan of the scheduler has every property, whatever the moment, and so has what comes of it over time",
        ours=count - len(bad), bar=count, holds=not bad, seed=seed, n=count, failures=dict(failed),
        rows=[*table(("property", "findings"), [(name, failed[name]) for name in sorted({*names, *failed})]), "", f"In all {said}."],
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
