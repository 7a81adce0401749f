"""Claim: ranks that stop moving are found within max(5 s, 5 x p99 step), the right one is named, and the curve is the calm one.

    make campaign NAME=hangs N=100 SEED=1

Each trial is a job of two or three workers in which several hangs happen, one after the other, at random steps: a rank is stopped by a
signal at a random moment, keeps Python's lock in C, computes for ever, blocks in the forward pass, in the backward pass or while it
loads data, calls a collective that the others do not, skips one that they call, or its connections to the others are closed (they are
told) or go silent (nobody is). Right is: that rank, alone; of the last two, that it was the connection, or whose. With two ranks nobody can
say which of them went another way, so a collective is skipped with three only. Steps take some hundredths of a second: the limit is five
seconds unless the machine is overloaded. Jobs that are done are kept under `build/` and not run again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from record import Kept, options, publish, table

from harness import TINY, Sandbox  # isort: skip  - `record` puts it on the path
from orchestrator.events import Event, EventKind
from orchestrator.job import JobState
from orchestrator.paths import JobKeys
from orchestrator.supervision.watch import P99_STEPS

KINDS = ("stop", "gil", "mute", "busy", "stop", "blocked", "reset", "backward", "data", "stop", "extra", "gil", "mute", "skip")
NAMES = {
    "stop": "SIGSTOP at a random moment", "gil": "keeps Python's lock in C", "busy": "computes for ever", "blocked": "blocks in forward",
    "backward": "blocks in backward", "data": "blocks while it loads data", "extra": "calls a collective alone",
    "skip": "skips a collective", "reset": "its connections are closed", "mute": "its connections are silent",
}  # fmt: skip
CONNECTION = ("reset", "mute")
HANGS_PER_JOB = 5
STEPS, SPACE = 280, 45
"""Steps of a job, and between two hangs at least."""
HANG_TIMEOUT_S = 5.0
WAIT_S = 90.0
SETTINGS = (
    *TINY, "workload.entrypoint=hanging_workload:Hanging", f"training.max_steps={STEPS}", "training.log_interval_steps=1",
    "recovery.max_restarts_without_progress=20", f"recovery.hang_timeout_s={HANG_TIMEOUT_S}",
)  # fmt: skip


class Campaign:
    def __init__(self, seed: int) -> None:
        self.box = Sandbox()
        self.seed = seed
        self.calm: dict[int, tuple[Any, str]] = {}

    def settings(self, workers: int, orders: Path) -> tuple[str, ...]:
        return (*SETTINGS, f"resources.num_workers={workers}", f"+workload.options.orders={orders}", "+workload.options.collective=true")

    def reference(self, workers: int) -> tuple[Any, str]:
        """History and fingerprint of the calm run."""
        if workers not in self.calm:
            job_id = self.box.submit(*self.settings(workers, self.box.root))
            assert self.box.wait_ended(job_id).state is JobState.SUCCEEDED, self.box.describe()
            self.calm[workers] = self.box.history(job_id), self.box.fingerprint(job_id)
        return self.calm[workers]

    def job(self, number: int) -> list[dict[str, Any]]:
        """One row for each hang of it."""
        rng = random.Random(f"{self.seed} {number}")
        workers = 2 + number % 2
        reference = self.reference(workers)
        orders = Path(tempfile.mkdtemp(prefix="orders-", dir=self.box.root))
        job_id = self.box.submit(*self.settings(workers, orders))
        rows: list[dict[str, Any]] = []
        for index in range(HANGS_PER_JOB):
            kind = KINDS[(number * HANGS_PER_JOB + index) % len(KINDS)]
            kind = "extra" if kind == "skip" and workers == 2 else kind
            at = 10 + SPACE * index + rng.randrange(SPACE - 20)
            row = self.hang(job_id, orders, kind, rng.randrange(workers), at, rng)
            rows.append({"job": number, "workers": workers, "kind": kind, "at": at, **row})
            if row["found_s"] is None:
                self.box.run("cancel", job_id, "--now")
                break
        ended = self.box.wait_ended(job_id)
        same = ended.state is JobState.SUCCEEDED and (self.box.history(job_id), self.box.fingerprint(job_id)) == reference
        shutil.rmtree(orders)
        return [{**row, "equal": same} for row in rows]

    def hang(self, job_id: str, orders: Path, kind: str, rank: int, at: int, rng: random.Random) -> dict[str, Any]:
        """Make it happen at step `at` or soon after it, and hear what the job says."""
        self.box.wait_step(job_id, at)
        known = self.box.client.events(job_id)[-1][0]
        began_s = self.stop(rank, rng) if kind == "stop" else self.order(orders, kind, rank)
        found = self.next(job_id, known, EventKind.HANG, EventKind.RANK_LOST)
        if found is None:
            return {"rank": rank, "found_s": None, "limit_s": HANG_TIMEOUT_S, "right": False, "said": ""}
        number, event = found
        right = (kind in CONNECTION and _is_connection(event)) or (event.kind is EventKind.HANG and _names(event, rank))
        started = self.next(job_id, number, EventKind.STARTED)
        assert started is not None, self.box.describe()
        self.box.wait_step(job_id, started[1].fields["first_step"] + 6)
        found_s, limit_s = round(event.time_s - began_s, 2), self.limit_s(job_id)
        return {"rank": rank, "found_s": found_s, "limit_s": limit_s, "right": right, "said": event.message}

    def limit_s(self, job_id: str) -> float:
        """By the steps that the ranks had made before they were looked at last."""
        store, found = self.box.store(job_id), []
        for item in store.list(JobKeys(job_id).artifact("incident-")):
            found.append(max(rank["step_p99_s"] for rank in json.loads(store.get(item.key))["ranks"]))
        return round(max(HANG_TIMEOUT_S, P99_STEPS * found[-1] if found else 0.0), 2)

    def stop(self, rank: int, rng: random.Random) -> float:
        time.sleep(rng.random())
        ranks = sorted(self.box.ranks(), key=lambda process: process.pid)
        os.kill(ranks[rank].pid, signal.SIGSTOP)
        return time.time()

    def order(self, orders: Path, kind: str, rank: int) -> float:
        """When the rank obeyed."""
        (orders / f"{kind}-{rank}").touch()
        taken = orders / f"{kind}-{rank}.taken"
        self.box.wait_until(taken.exists, f"rank {rank} to take {kind}", WAIT_S)
        began_s = float(taken.read_text())
        taken.unlink()
        return began_s

    def next(self, job_id: str, after: int, *kinds: EventKind) -> tuple[int, Event] | None:
        limit = time.monotonic() + WAIT_S
        while time.monotonic() < limit:
            for number, event in self.box.client.events(job_id, after):
                if event.kind in kinds:
                    return number, event
            time.sleep(0.05)
        return None


def _names(event: Event, rank: int) -> bool:
    """That rank and no other: `rank 1 is stopped ...`."""
    return event.fields["rank"] == rank and event.message.startswith(f"rank {rank} ")


def _is_connection(event: Event) -> bool:
    return event.fields["fingerprint"].startswith("hang:connection") or event.fields["reason"] == "NETWORK"


def main() -> int:
    asked = options(100)
    kept = Kept("campaign-hangs", asked.seed)
    rows = kept.rows
    campaign = Campaign(asked.seed)
    try:
        while len(rows) < asked.n:
            new = campaign.job(rows[-1]["job"] + 1 if rows else 0)
            kept.add(*new)
            for row in new:
                print(f"{len(rows):3d}/{asked.n}  {row}", flush=True)
    finally:
        campaign.box.close()
    return _publish(rows, asked.seed)


def _publish(rows: list[dict[str, Any]], seed: int) -> int:
    in_time = [row["found_s"] is not None and row["found_s"] <= row["limit_s"] for row in rows]
    right, equal = sum(row["right"] for row in rows), sum(row["equal"] for row in rows)
    share = right / len(rows)
    lines = []
    for kind in NAMES:
        of_kind = [(row, on_time) for row, on_time in zip(rows, in_time, strict=True) if row["kind"] == kind]
        if of_kind:
            times = sorted(row["found_s"] for row, _ in of_kind if row["found_s"] is not None)
            middle, last = (times[len(times) // 2], times[-1]) if times else ("-", "-")
            named, curve = sum(row["right"] for row, _ in of_kind), sum(row["equal"] for row, _ in of_kind)
            lines.append((NAMES[kind], len(of_kind), named, sum(on_time for _, on_time in of_kind), middle, last, curve))
    wrong = Counter(f"{NAMES[row['kind']]}, {row['workers']} workers: {row['said'] or 'not found'}" for row in rows if not row["right"])
    header = ("a rank of the job", "hangs", "named rightly", "found in time", "median s", "longest s", "curve of its job as the calm one")
    return publish(
        "hangs", "Ranks that stop moving are found within max(5 s, 5 x p99 step), the right one is named, and the curve is the calm one",
        ours=round(share, 4), bar=0.99, holds=share >= 0.99 and all(in_time) and equal == len(rows), seed=seed, n=len(rows),
        in_time=sum(in_time), equal=equal,
        rows=[*table(header, lines), "", *(f"- named wrongly, {count} times: {what}" for what, count in wrong.items())],
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
