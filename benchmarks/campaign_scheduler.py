"""Claim: whatever the moment, a plan of the scheduler has every property that it is to have, and so has what comes of it over time.

    make campaign NAME=scheduler N=100000 SEED=0

Instances are made by their number from the seed: moments of a random cluster; every 200th is the story of a small one from its first job
to its last, and every 200th a trace for the simulator. What fails is printed as Python, as small as it can be made. Instances that are done
are kept under `build/` and not tried again.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from record import Kept, options, publish, table

from scheduling import lives  # isort: skip  - `record` puts the tests on the path
from scheduling.forms import code, shrunk
from scheduling.properties import PROPERTIES
from scheduling.strategies import MODES, Moment, moment
from scheduling.traces import close, in_both_engines, in_every_round

BATCH = 200
STORIES = 200
"""One instance of so many is a story, and one a trace."""
Found = list[tuple[str, str]]
"""(property, what is amiss)."""


def instance(seed: int, number: int, did: Counter[str]) -> Found:
    rng = Random(f"{seed} {number}")
    if number % STORIES == 0:
        return _of_a_story(rng, did)
    if number % STORIES == 1:
        return _of_a_trace(rng, did)
    return _of_a_moment(moment(rng), did)


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
    did["stories"] += 1
    mode = rng.choice(MODES)
    calmly = mode != "preemptive" and rng.randrange(2) == 1
    told = lives.story(rng, mode, calmly=calmly)
    try:
        life = lives.live(told, check=True)
        found = [("led to", said) for said in life.found]
        found += [(holds.__name__, said) for holds in lives.LIVES for said in holds(told, life)]
        found += [("head_keeps_its_promise", said) for said in lives.head_keeps_its_promise(told, life) if calmly]
        found += [("planning more often changes nothing", "")] if not lives.live(told, step_s=3700.0).goes_as(life) else []
        found += [("a controller may forget", "")] if not lives.live(told, forget=True).goes_as(life) else []
    except Exception:  # noqa: BLE001 - a finding
        return [("planned", traceback.format_exc(limit=-2))]
    for _, plan in life.plans:
        did.update(_done(plan))
    return found


def _of_a_trace(rng: Random, did: Counter[str]) -> Found:
    did["traces"] += 1
    mode, draws, found = rng.choice(MODES), rng.randrange(2**32), []
    for name, both in (("skipping is stepping", in_every_round), ("both engines agree", in_both_engines)):
        try:
            one, other = both(Random(draws), mode)
        except Exception:  # noqa: BLE001 - a finding
            found.append(("simulated", traceback.format_exc(limit=-2)))
            continue
        if not close(one, other):
            found.append((name, f"{mode}, Random({draws})"))
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
    first = sum(row["count"] for row in kept.rows)
    batches = [(asked.seed, number, min(number + BATCH, asked.n)) for number in range(first, asked.n, BATCH)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        for (_, _, stop), row in zip(batches, pool.imap(_batch, batches), strict=True):
            kept.add(row)
            for failure in row["failures"]:
                print(f"{failure['number']} {failure['property']}: {failure['said']}", flush=True)
            print(f"{stop}/{asked.n}  {len(row['failures'])} findings", flush=True)
    return report(kept.rows, asked.seed)


def _batch(numbers: tuple[int, int, int]) -> dict[str, Any]:
    """Of the instances (seed, first, behind the last)."""
    seed, first, stop = numbers
    did = Counter[str]()
    failures = [
        {"number": number, "property": name, "said": said} for number in range(first, stop) for name, said in instance(seed, number, did)
    ]
    return {"count": stop - first, "did": did, "failures": failures}


def report(rows: list[dict[str, Any]], seed: int) -> int:
    count = sum(row["count"] for row in rows)
    failed = Counter(failure["property"] for row in rows for failure in row["failures"])
    bad = {failure["number"] for row in rows for failure in row["failures"]}
    did: Counter[str] = sum((Counter(row["did"]) for row in rows), Counter())
    names = [holds.__name__ for holds in (*PROPERTIES, *lives.LIVES, lives.head_keeps_its_promise)]
    said = ", ".join(f"{did[kind]} {kind if kind != 'order' else 'jobs that wait'}" for kind in did)
    return publish(
        "scheduler_properties", "Every plan of the scheduler has every property, whatever the moment, and so has what comes of it in time",
        ours=count - len(bad), bar=count, holds=not bad, seed=seed, n=count, failures=dict(failed),
        rows=[
            *table(("property", "findings"), [(name, failed[name]) for name in sorted({*names, *failed})]), "",
            f"In all {said}. Instances with findings: {_list(bad)}.",
        ],
    )  # fmt: skip


def _list(numbers: set[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none"


if __name__ == "__main__":
    raise SystemExit(main())
