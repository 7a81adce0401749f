"""Supervisor, agent and warm process on a real Ray cluster, with ranks that need no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal

import psutil
import pytest
from patience import LIMIT_S, wait_until
from supervision_box import Box, calm_history, double_spec

from orchestrator.chaos.claims import Claims
from orchestrator.chaos.plan import SUPERVISOR_PHASES, plan
from orchestrator.job import EndReason
from orchestrator.paths import write_private
from orchestrator.spec import ChaosSpec, EnvironmentSpec, RecoverySpec
from orchestrator.supervision.accounting import Bucket


@pytest.fixture(scope="module")
def box():
    it = Box()
    yield it
    it.close()


def run(box, **options):
    job = box.start(double_spec(box.url, **options))
    result = job.wait_ended()
    return job, result


def test_a_calm_job_trains_commits_and_ends(box):
    job, result = run(box)
    assert (result.end_reason, result.step, result.committed_step) == (EndReason.COMPLETED, 40, 40), result.message
    assert job.history() == calm_history(40)
    assert job.events().count("committed") == 4
    seconds = job.ledger().seconds
    assert seconds[Bucket.STEP] > 0 and not seconds[Bucket.LOST] and not seconds[Bucket.RECOVERY], seconds
    status = job.status()
    assert status["progress"]["committed_step"] == 40
    assert [number for number, _ in status["events"]] == list(range(1, len(status["events"]) + 1))
    assert job.status(after_event=2)["events"] == status["events"][2:]
    assert job.log(1, 0) == "rank 0 of epoch 1 begins at 0\n"
    assert len(list(job.store.list(job.keys.commits))) == 3  # keep_last
    job.release()


def test_releasing_twice_does_no_harm_and_leaves_nothing(box):
    job = box.start(double_spec(box.url, step_s=0.05, max_steps=1000))
    job.wait_step(3)
    pids = list(job.ranks().values())
    job.release()
    job.release()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the ranks' end")
    wait_until(lambda: not list(_clocks(job.id)), "the clocks' removal")
    wait_until(lambda: not [p for p in box.having("ray::Agent") if p.status() != psutil.STATUS_ZOMBIE], "the agent's end")


@pytest.mark.parametrize("how", ["segfault", "exit"])
def test_a_rank_that_fails_once_is_replaced_and_the_curve_is_the_calm_one(box, how):
    job, result = run(box, faults=[{"rank": 1, "step": 25, "how": how, "epochs": 1}], step_s=0.005)
    assert result.end_reason is EndReason.COMPLETED, result.message
    assert job.history() == calm_history(40)
    assert job.status()["progress"]["restarts"] == 1
    assert "restored" in job.events()
    seconds = job.ledger().seconds
    assert all(seconds[bucket] > 0 for bucket in (Bucket.STEP, Bucket.LOST, Bucket.DETECTION, Bucket.RECOVERY)), seconds
    assert seconds[Bucket.STEP] + seconds[Bucket.CHECKPOINT] >= 20 * 2 * 0.005, "what was done before the last save is kept"
    job.release()


def test_a_killed_uploader_is_started_again_and_nothing_else_notices(box):
    job = box.start(double_spec(box.url, max_steps=300, step_s=0.01))
    for step in (30, 100):
        wait_until(lambda: (job.status()["progress"]["committed_step"] or 0) >= step, f"the commit of {step}")  # noqa: B023
        for process in box.having("orchestrator.supervision.uploader"):
            process.kill()
    result = job.wait_ended()
    assert (result.end_reason, result.committed_step) == (EndReason.COMPLETED, 300), result.message
    assert job.status()["progress"]["restarts"] == 0
    assert job.events().count("committed") == 30
    assert job.history() == calm_history(300)
    job.release()


def test_what_is_staged_when_a_rank_dies_is_not_lost(box):
    """A segment of 4096 bytes every half second: what two ranks staged at steps 10 and 20 takes two seconds, one dies a second before."""
    job, result = run(box, faults=[{"rank": 1, "step": 29, "how": "segfault", "epochs": 1}], step_s=0.05, upload_bytes_per_s=8192)
    assert result.end_reason is EndReason.COMPLETED, result.message
    assert job.log(2, 0) == "rank 0 of epoch 2 begins at 20\n"
    assert job.history() == calm_history(40)
    job.release()
    wait_until(lambda: not list(_clocks(job.id)), "the removal of clocks and slabs")


def test_a_users_error_is_tried_once_more_and_then_shown(box):
    job, result = run(box, faults=[{"rank": 1, "step": 25, "how": "raise"}], step_s=0.005)
    assert result.end_reason is EndReason.USER_ERROR
    assert "rank 1: ValueError: a bug of the user's" in result.message and "the traceback" in result.message
    assert result.resumable and result.committed_step == 20
    assert job.events().count("restarted") == 1
    job.release()


def test_an_impossible_configuration_is_not_tried_again(box):
    job, result = run(box, faults=[{"rank": 0, "step": 2, "how": "bad_config"}])
    assert result.end_reason is EndReason.CONFIGURATION
    assert "restarted" not in job.events()
    assert not result.resumable
    job.release()


def test_the_cause_is_named_ahead_of_its_echo(box):
    together = {"step": 1, "until": f"{box.root}/rank-1-has-come-{{epoch}}"}
    faults = [{"rank": 0, "how": "wait", **together}, {"rank": 1, "how": "come", **together}]
    faults += [{"rank": 0, "step": 2, "how": "echo"}, {"rank": 1, "step": 4, "how": "raise"}]
    job, result = run(box, faults=faults, step_s=0.01)
    assert result.end_reason is EndReason.USER_ERROR
    assert result.message.startswith("rank 1:")
    job.release()


@pytest.mark.parametrize("mode, reason", [("drain", EndReason.CANCELLED), ("limit", EndReason.TIME_LIMIT)])
def test_drain_saves_and_the_next_run_goes_on_from_there(box, mode, reason):
    spec = double_spec(box.url, max_steps=200, step_s=0.1, workers=1)
    job = box.start(spec)
    job.wait_step(15)
    job.stop(mode)
    result = job.wait_ended()
    assert result.end_reason is reason and result.resumable
    assert result.committed_step == result.step < 200
    job.release()
    again = box.start(double_spec(box.url, max_steps=200, workers=1), job.id, run=2)
    assert again.wait_ended().end_reason is EndReason.COMPLETED
    assert again.history() == calm_history(200)
    again.release()


PROCESSES = {
    "rank 0": lambda box, job: psutil.Process(job.ranks()[0]),
    "rank 0, of the warm process,": lambda box, job: box.warm()[0],  # passes it on
    "the agent of node 0": lambda box, job: _living(box, "ray::Agent"),
    "the supervisor": lambda box, job: _living(box, "ray::Supervisor"),
}


def test_sigterm_to_any_of_its_processes_saves_leaves_and_the_next_run_goes_on_from_there(box):
    job_id, first, patient = "preempted", 0, RecoverySpec(hang_timeout_s=0, preemption_grace_s=LIMIT_S)
    for run, (who, process) in enumerate(PROCESSES.items(), 1):
        gate = box.root / f"told-{run}"
        holds = {"rank": 0, "step": first + 6, "how": "wait", "until": str(gate)}
        job = box.start(double_spec(box.url, max_steps=800, step_s=0.05, workers=1, recovery=patient, faults=[holds]), job_id, run)
        job.wait_step(first + 5)
        process(box, job).send_signal(signal.SIGTERM)
        wait_until(lambda: job.status()["state"] == "draining", "the order to save")  # noqa: B023
        gate.touch()
        result = job.wait_ended()
        assert result.end_reason is EndReason.PREEMPTED, result.message
        assert result.message.startswith(f"{who.partition(',')[0]} got SIGTERM; stopped after step {result.step}; back to the queue")
        assert first < result.committed_step == result.step < 800
        progress, first = job.status()["progress"], result.step
        assert (progress["preemptions"], progress["restarts"]) == (run, 0)
        job.release()
        wait_until(lambda: not _all_living(box, "ray::Agent") + _all_living(box, "ray::Supervisor"), "the end of both actors")
    again = box.start(double_spec(box.url, max_steps=800, workers=1), job_id, run=5)
    assert again.wait_ended().end_reason is EndReason.COMPLETED
    assert again.history() == calm_history(800)
    assert again.status()["progress"]["preemptions"] == 4
    again.release()


def test_a_save_that_does_not_fit_the_grace_is_abandoned_and_the_next_run_goes_on_from_the_commit_before(box):
    """A save is a segment of 4096 bytes; once one is measured, the limit says that the next takes four seconds, and there are three."""
    job = box.start(double_spec(box.url, max_steps=200, step_s=0.02, workers=1, upload_bytes_per_s=1024))
    wait_until(lambda: (job.status()["progress"]["committed_step"] or 0) >= 10, "a commit")
    job.preempt(grace_s=3.0)
    result = job.wait_ended()
    assert result.end_reason is EndReason.PREEMPTED
    assert "is abandoned: it takes" in result.message and "at 0.001 MB/s" in result.message, result.message
    choices = [event["fields"] for _, event in job.status()["events"] if event["kind"] == "preempted"]
    assert [choice["choice"] for choice in choices] == ["abandon"]
    assert choices[0]["bytes_per_s"] == 1024 and choices[0]["needed_s"] + choices[0]["reserve_s"] > choices[0]["grace_s"]
    commits = [key.key for key in job.store.list(job.keys.commits)]
    assert max(int(key[-17:-5]) for key in commits) == result.committed_step < result.step
    job.release()
    again = box.start(double_spec(box.url, max_steps=200, workers=1), job.id, run=2)
    assert again.wait_ended().end_reason is EndReason.COMPLETED
    assert again.log(2, 0) == f"rank 0 of epoch 2 begins at {result.committed_step}\n"
    assert again.history() == calm_history(200)
    again.release()


@pytest.mark.slow
def test_an_agent_that_is_stopped_is_ended_with_its_ranks_and_the_job_goes_on(box):
    faults = [{"rank": 0, "step": 15, "how": "hold", "epochs": 1}]
    job = box.start(double_spec(box.url, workers=1, faults=faults, recovery=RecoverySpec(backoff_s=0.05, hang_timeout_s=0)))
    job.wait_step(14)
    rank, agent = psutil.Process(job.ranks()[0]), _living(box, "ray::Agent")
    agent.suspend()
    result = job.wait_ended()
    assert result.end_reason is EndReason.COMPLETED, result.message
    assert job.history() == calm_history(40)
    (lost,) = [event for _, event in job.status()["events"] if event["kind"] == "agent_lost"]
    assert "has said nothing for 60 s" in lost["message"]
    _, alive = psutil.wait_procs([agent, rank], timeout=LIMIT_S)
    assert not alive, "Ray ends a process that does not react by force, a moment later"
    job.release()


def test_stop_now_does_not_wait_for_a_rank(box):
    job = box.start(double_spec(box.url, faults=[{"rank": 0, "step": 15, "how": "hold"}]))
    job.wait_step(14)
    job.stop("now")
    result = job.wait_ended()
    assert result.end_reason is EndReason.CANCELLED
    assert job.ranks() == {} if not job.status()["ended"] else True
    job.release()


def test_a_damaged_commit_is_named_and_passed_over(box):
    job = box.start(double_spec(box.url, max_steps=200, step_s=0.1, workers=1))
    wait_until(lambda: (job.status()["progress"]["committed_step"] or 0) >= 20, "two commits")
    job.stop("now")
    newest = job.wait_ended().committed_step
    job.release()
    key = next(info.key for info in job.store.list(job.keys.checkpoints) if f"{newest:012d}-" in info.key and "MANIFEST" in info.key)
    job.store.put(key, b"damaged")
    again = box.start(double_spec(box.url, max_steps=200, workers=1), job.id, run=2)
    assert again.wait_ended().end_reason is EndReason.COMPLETED
    assert again.history() == calm_history(200)
    assert again.events().count("corrupt_checkpoint") == 1
    again.release()


def test_max_restarts_bounds_even_kills(box):
    job = box.start(double_spec(box.url, max_steps=2000, step_s=0.01, workers=1, recovery=RecoverySpec(max_restarts=0)))
    job.wait_step(3)
    os.kill(job.ranks()[0], signal.SIGKILL)
    result = job.wait_ended()
    assert result.end_reason is EndReason.RANK_KILLED
    assert "SIGKILL" in result.message and "max_restarts=0" in result.message
    job.release()


def test_faults_that_are_planned_come_once_each_over_all_lives_and_the_curve_is_the_calm_one(box):
    planned = ChaosSpec(seed=4, last_step=35, kill_rank=6, kill_agent=6, kill_uploader=6, kill_supervisor=2)
    spec = dataclasses.replace(double_spec(box.url, step_s=0.01), chaos=planned)
    due = {fault.name for fault in plan(spec, 2) if fault.phase in ("forward", *SUPERVISOR_PHASES)}  # a double knows no other phase
    assert {name.partition("-")[0] for name in due} == {"kill_rank", "kill_agent", "kill_uploader", "kill_supervisor"}, "choose a seed"
    job = box.start(spec)
    result = job.wait_ended()
    assert result.end_reason is EndReason.COMPLETED, result.message
    assert job.history() == calm_history(40)
    assert Claims(job.store, job.id).done() == due
    assert job.events().count("chaos") == len(due)
    job.release()


def test_a_secret_reaches_the_ranks_and_stays_in_its_private_file(box):
    job_id, value = "with-secret", "s3cr3t-value"
    path = box.home.secrets(job_id)
    write_private(path, json.dumps({"MY_SECRET": value}))
    spec = double_spec(box.url, max_steps=2000, step_s=0.01, workers=1)
    job = box.start(dataclasses.replace(spec, environment=EnvironmentSpec(secrets=("MY_SECRET",))), job_id)
    job.wait_step(2)
    found = [file for file in box.root.rglob("*") if file.is_file() and value.encode() in file.read_bytes()]
    assert found == [path], "of Ray's own logs and all of the home"
    job.stop("now")
    job.wait_ended()
    content = b"".join(job.store.get(info.key) for info in job.store.list(job.keys.root))
    assert value.encode() not in content
    assert hashlib.sha256(value.encode()).hexdigest().encode() in content, "its output, by a rank that has it"
    job.release()


def _clocks(job_id):
    from pathlib import Path

    return Path("/dev/shm").glob(f"orchestrator-{job_id}-*")


def _living(box, name):
    return _all_living(box, name)[0]


def _all_living(box, name):
    return [process for process in box.having(name) if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
