"""Claim: whatever request of its checkpoints a job is struck at, the one that follows goes on from the newest good commit, bit for bit.

    make campaign NAME=checkpoint_crashes N=100000 SEED=1
    make campaign NAME=checkpoint_crashes N=100000 SEED=1 ARGS="--end-to-end 20"

In process, on the faulty store double: two and three writers, one and several segments each, two and three supervisors one after the
other, with and without a twin whose commit arrives late; struck before and after every request, by a lost answer, by a store that is out of
reach, by a request that arrives twice. N points are drawn by the seed, or all there are.

`--end-to-end K`: K real jobs as in `campaign_kills`, in which a rank, the uploader, the supervisor, the agent or everything is killed while
a save is in the store and its commit is not. Afterwards losses and weights equal the calm run's, and every epoch has gone on from the
newest commit that had been announced before it. Trials that are done are kept under `build/` and not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaign_kills import GPT, STEPS, Campaign
from record import ROOT, publish, table

import checkpoint_trials as trials  # isort: skip  - `record` puts it on the path
from orchestrator.job import JobState
from orchestrator.paths import JobKeys
from orchestrator.storage import ObjectStore

VICTIMS = ("rank", "uploader", "supervisor", "rank", "everything", "agent", "uploader")


def in_process(count: int, seed: int) -> int:
    """The exit status: 0 if nothing was wrong."""
    points = trials.sample(seed, count)
    tried, good, wrong = Counter[str](), Counter[str](), []
    for number, point in enumerate(points, 1):
        found = trials.strike(point, seed + number)
        tried[point.kind] += 1
        good[point.kind] += not found
        if found:
            wrong.append(f"{point}: {'; '.join(found)}")
            print(wrong[-1], flush=True)
        if number % 500 == 0:
            print(f"{number}/{len(points)}", flush=True)
    return publish(
        "checkpoint_crashes", "After a fault at any request of its checkpoints a job goes on from the newest good commit, bit for bit",
        ours=len(points) - len(wrong), bar=len(points), holds=not wrong and len(points) >= 200, seed=seed, n=len(points),
        rows=table(("struck by", "points", "newest restored, equal"), [(kind, tried[kind], good[kind]) for kind in trials.KINDS]),
    )  # fmt: skip


class SaveKills(Campaign):
    """Kills inside saves; all commits are kept, so that it can be seen afterwards what each epoch went on from."""

    def trial(self, number: int) -> dict[str, Any]:
        rng, victim = random.Random(f"{self.seed} save {number}"), VICTIMS[number % len(VICTIMS)]
        reference = self.reference()
        job_id = self.box.submit(*GPT, "checkpoint.keep_last=0")
        at = rng.randrange(1, STEPS - 40)
        self.box.wait_step(job_id, at)
        caught = self._wait_for_unfinished_save(job_id)
        time.sleep(rng.random() * 0.01)
        self._kill(victim, job_id, rng)
        inside = not self._committed(job_id, caught)
        if victim == "everything":
            self.box.run("resume", job_id)
        job = self.box.wait_ended(job_id)
        store, keys = self.box.store(job_id), JobKeys(job_id)
        equal = job.state is JobState.SUCCEEDED and (self.box.history(job_id), self.box.fingerprint(job_id)) == reference
        passed_over = commits_passed_over(store, keys)
        return {
            "number": number, "killed": victim, "after_step": at, "save": caught, "inside": inside,
            "epochs": len(list(store.list(keys.leases))), "passed_over": passed_over, "good": equal and not passed_over,
            "state": job.state.value,
        }  # fmt: skip

    def _wait_for_unfinished_save(self, job_id: str) -> str:
        """Name of a checkpoint that has objects and no commit."""
        folder = self.box.home.store / JobKeys(job_id).checkpoints

        def unfinished() -> str | None:
            return next((path.name for path in _named(folder) if not self._committed(job_id, path.name)), None)

        return _soon(unfinished, self.box.describe)

    def _committed(self, job_id: str, checkpoint: str) -> bool:
        step, epoch, _ = checkpoint.split("-")
        return (self.box.home.store / JobKeys(job_id).commit(int(epoch), int(step))).exists()


def _named(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def _soon(condition: Callable[[], str | None], describe: Callable[[], str]) -> str:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        found = condition()
        if found:
            return found
        time.sleep(0.001)
    raise AssertionError(f"no save within a minute\n{describe()}")


def commits_passed_over(store: ObjectStore, keys: JobKeys) -> list[str]:
    """Commits that had been announced before an epoch began and are newer than the one it went on from."""
    records = [json.loads(line) for info in store.list(keys.journal) for line in store.get(info.key).splitlines() if line]
    announced = {(int(record["epoch"]), int(record["step"])) for record in records if record.get("event") == "committed"}
    found = []
    for info in store.list(keys.bases):
        epoch = int(info.key.rsplit("/", 1)[1].split(".")[0])
        named = json.loads(store.get(info.key))["values"]["commit"]
        base = tuple(map(int, named.rsplit("/", 1)[1].removesuffix(".json").split("-"))) if named else (0, 0)
        found += [f"epoch {epoch} passed over {commit}" for commit in sorted(announced) if commit[0] < epoch and commit > base]
    return found


def end_to_end(count: int, seed: int) -> int:
    """The exit status: 0 if every trial was good."""
    kept = ROOT / "build" / f"campaign-checkpoint-crashes-{seed}.jsonl"
    kept.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    campaign = SaveKills(seed)
    try:
        for number in range(len(rows), count):
            row = campaign.trial(number)
            rows.append(row)
            with kept.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{number + 1:3d}/{count}  {row}", flush=True)
    finally:
        campaign.box.close()
    rows = rows[:count]
    good, tried = Counter(row["killed"] for row in rows if row["good"]), Counter(row["killed"] for row in rows)
    inside = Counter(row["killed"] for row in rows if row["inside"])
    return publish(
        "checkpoint_crashes_end_to_end", "A job killed inside a save goes on from the newest announced commit and ends as the calm run",
        ours=good.total(), bar=count, holds=good.total() == count, seed=seed, n=count,
        rows=table(
            ("killed", "trials", "before the commit was there", "newest used, equal to the calm run"),
            [(kind, tried[kind], inside[kind], good[kind]) for kind in sorted(tried)],
        ),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--end-to-end", type=int, default=0)
    asked = parser.parse_args()
    status = in_process(asked.n, asked.seed)
    return end_to_end(asked.end_to_end, asked.seed) | status if asked.end_to_end else status


if __name__ == "__main__":
    raise SystemExit(main())
