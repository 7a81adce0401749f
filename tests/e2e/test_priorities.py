"""Jobs that compete for a full cluster: who leaves for whom, what that costs, and that nothing is lost, the controller's death or not."""

from __future__ import annotations

import json

import pytest
from harness import TINY, Sandbox, held, kill, slowed

from orchestrator.control.planning.replay import replay
from orchestrator.control.records.store import JobStore
from orchestrator.events import EventKind
from orchestrator.job import JobState
from orchestrator.paths import JobKeys

POLICY = ("scheduler=preemptive", "scheduler.min_run_s=0", "scheduler.gain_factor=0", "scheduler.tenants.lab.quota=2")
FULL = ("cluster.num_cpus=2", "resources.cpus_per_worker=1")
STEPS = 300


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    yield box
    box.close()


def told(sandbox, job_id, kind):
    return [event for _, event in sandbox.client.events(job_id) if event.kind is kind]


def test_a_gang_of_a_higher_priority_takes_a_full_cluster_and_its_victim_loses_nothing_though_the_controller_dies(sandbox, tmp_path):
    settings = (*TINY, *FULL, f"training.max_steps={STEPS}", "checkpoint.interval_steps=150")
    calm = sandbox.submit(*settings, *POLICY)
    assert sandbox.wait_ended(calm).state is JobState.SUCCEEDED, sandbox.describe()

    urgent_trains, is_seen = tmp_path / "urgent-trains", tmp_path / "is-seen"
    victim = sandbox.submit(*settings, *slowed(urgent_trains, steps=20))
    sandbox.wait_step(victim, 20)
    urgent = sandbox.submit(*settings, "training.max_steps=60", "scheduling.priority=5", *held(is_seen, 20))
    kill(sandbox.wait_until(lambda: sandbox.victims("controller"), "the controller")[0])
    third = sandbox.submit(*settings, "training.max_steps=40", "scheduling.priority=1", f"scheduling.after=[{urgent}]")
    sandbox.wait_until(lambda: told(sandbox, urgent, EventKind.STARTED), "the gang's first step")
    urgent_trains.touch()
    assert sandbox.job(victim).state is JobState.QUEUED, sandbox.describe()
    kill(sandbox.wait_until(lambda: sandbox.victims("controller"), "the controller")[0])
    is_seen.touch()
    for job_id in (urgent, third, victim):
        assert sandbox.wait_ended(job_id).state is JobState.SUCCEEDED, sandbox.describe()

    job = sandbox.job(victim)
    assert (job.run, job.progress.preemptions, job.progress.restarts, job.service.preemptions) == (2, 1, 0, 1)
    assert sandbox.history(victim) == sandbox.history(calm)
    assert sandbox.fingerprint(victim) == sandbox.fingerprint(calm)
    ordered, left = told(sandbox, victim, EventKind.PREEMPTED)
    assert ordered.fields["for_job"] == urgent and ordered.message.startswith(f"makes room for {urgent}, which comes first")
    assert left.fields["choice"] == "save" and left.fields["needed_s"] <= left.fields["grace_s"]
    stay = next(stay for _, stay in JobStore(sandbox.home.jobs_db).stays() if stay.job_id == victim)
    assert 0 < stay.ended_s - ordered.time_s <= left.fields["grace_s"], "it had left"
    check_receipt(sandbox, victim, urgent)
    first, second, last = (sandbox.job(job_id) for job_id in (urgent, third, victim))
    assert first.started_s < second.started_s < last.started_s
    assert second.started_s >= first.ended_s
    for job_id in (calm, urgent, third, victim):
        sandbox.ledger(job_id)

    again = replay(sandbox.home.plans)
    assert again.plans >= 6 and again.differing == ()


def check_receipt(sandbox, job_id, for_job):
    """What its ledger said when the job trained again, less what it had said when the job was told to leave: as its journal has both."""
    (receipt,) = [event.fields for event in told(sandbox, job_id, EventKind.RECEIPT)]
    assert (receipt["order"], receipt["for_job"]) == ("preempt", for_job)
    found = ledgers(sandbox, job_id)
    before = [row["seconds"] for row in found if row["until_s"] <= receipt["since_s"]][-1]
    (after,) = [row["seconds"] for row in found if row["until_s"] == receipt["until_s"]]
    for bucket in ("provision", "idle", "recovery", "detection", "hang", "queue"):  # of these nothing is counted while it trains
        assert receipt[f"{bucket}_gpu_s"] == pytest.approx(after[bucket] - before[bucket], abs=1e-6), bucket
    parts = ("work_done_again", "checkpoint", "idle", "provision", "start", "recovery", "detection", "hang", "unattributed")
    assert receipt["lost_gpu_s"] == pytest.approx(sum(receipt[f"{part}_gpu_s"] for part in parts))
    held = 2 * (receipt["until_s"] - receipt["since_s"])
    assert receipt["lost_gpu_s"] + receipt["useful_gpu_s"] + receipt["queue_gpu_s"] == pytest.approx(held, abs=1e-3)
    assert 0 < receipt["lost_gpu_s"] < held


def ledgers(sandbox, job_id):
    """Of its journal, oldest first."""
    store, rows = sandbox.store(job_id), []
    for info in store.list(JobKeys(job_id).journal):
        records = [json.loads(line) for line in store.get(info.key).splitlines()]
        rows += [record["ledger"] for record in records if record["kind"] == "ledger"]
    return sorted(rows, key=lambda row: row["until_s"])
