"""Claim: no request that the HTTP API's schema allows, and none that it does not, is an error of the server or changes anything unasked.

    make campaign NAME=api N=20 SEED=1

Schemathesis draws requests for every operation from the API's own OpenAPI schema, with names of jobs, nodes and users that exist and that
do not, and with wrong values of every kind. With a token: no answer is a 5xx, each has a status, type and body that the schema names.
Without one: each that would change something is refused, and jobs, users, policy, audit log and object store are as before. Each round
has another seed, another order of the operations and a store of its own.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from record import options, publish, table

from api_requests import Asking, Service  # isort: skip  - `record` puts it on the path
from orchestrator.paths import Home  # isort: skip

EXAMPLES = settings(
    max_examples=25, deadline=None, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip


def main() -> int:
    asked = options(20)
    answered, refused, found = Counter[tuple[str, int]](), Counter[tuple[str, int]](), list[str]()
    for number in range(asked.n):
        folder = Path(tempfile.mkdtemp(prefix="api-"))
        service = Service(Home(folder))
        try:
            first, second = (Asking(service, EXAMPLES, asked.seed * 1000 + number) for _ in range(2))
            found += _failure(second.nothing_changes) + _failure(first.all_are_answered)
        finally:
            service.store.close()
            shutil.rmtree(folder, ignore_errors=True)
        answered.update(first.asked)
        refused.update(second.asked)
        counts = f"{answered.total()} requests with a token, {refused.total()} without, {len(found)} findings"
        print(f"{number + 1:3d}/{asked.n}  {counts}", flush=True)
    rows = [(what, *counts) for what, counts in _by_operation(answered, refused).items()]
    return publish(
        "api", "No request is an error of the server, and none changes anything without a token", ours=len(found), bar=0,
        holds=not found, unit="findings", seed=asked.seed, n=asked.n, requests=answered.total(), without_token=refused.total(),
        rows=[*table(("operation", "2xx, 3xx", "4xx", "5xx", "without a token"), rows), "", *(f"- {what}" for what in found)],
    )  # fmt: skip


def _failure(ask: Callable[[], None]) -> list[str]:
    try:
        ask()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return [f"{type(error).__name__}: {error}".splitlines()[0][:300]]
    return []


def _by_operation(answered: Counter[tuple[str, int]], refused: Counter[tuple[str, int]]) -> dict[str, list[int]]:
    """How often each operation was answered with a status below 400, 500 and from there on, and how often it was asked without a token."""
    counts: dict[str, list[int]] = {}
    for (what, status), count in sorted(answered.items()):
        counts.setdefault(what, [0, 0, 0, 0])[max(0, min(status // 100, 5) - 3)] += count
    for (what, _), count in refused.items():
        counts.setdefault(what, [0, 0, 0, 0])[3] += count
    return counts


if __name__ == "__main__":
    raise SystemExit(main())
