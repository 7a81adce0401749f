"""What a person finds in MLflow after a job that was killed, stopped, resumed and changed: one run, every step once, the artifacts."""

from __future__ import annotations

import json
import os
import re

import pytest
from harness import TINY, Sandbox, slowed

from orchestrator.events import EventKind
from orchestrator.job import JobState

TRACKED = (*TINY, "tracking.enabled=true", "tracking.registered_model=tiny", "training.max_steps=150")


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    yield box
    box.close()


def mlflow_client(uri: str):
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def starts(sandbox, job_id):
    return sum(event.kind is EventKind.STARTED for _, event in sandbox.client.events(job_id))


def told_before_the_kill(sandbox, job_id):
    (fault,) = (event.fields["fault"] for _, event in sandbox.client.events(job_id) if event.kind is EventKind.RESTARTED)
    return fault["step"]


def test_one_run_over_a_kill_a_stop_and_a_resume_at_another_world_size(sandbox, tmp_path):
    is_stopped = tmp_path / "is-stopped"
    job_id = sandbox.submit(*TRACKED, *slowed(is_stopped, steps=25))
    sandbox.wait_step(job_id, 30)
    sandbox.wait_until(sandbox.ranks, "a rank")[0].kill()
    sandbox.wait_until(lambda: starts(sandbox, job_id) == 2, "the restart")
    sandbox.wait_step(job_id, told_before_the_kill(sandbox, job_id) + 1)  # what was told stays, and three workers round otherwise
    sandbox.client.request_stop(job_id, "drain")
    assert sandbox.wait_ended(job_id).state is JobState.CANCELLED
    is_stopped.touch()
    code, output = sandbox.run("resume", job_id, "resources.num_workers=3")
    assert code == 0, output

    job = sandbox.job(job_id)
    client = mlflow_client(job.spec.tracking.uri)
    experiment = client.get_experiment_by_name("orchestrator")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs] == [job.result.mlflow_run_id]
    run = runs[0]
    assert run.info.status == "FINISHED"
    assert run.data.tags["orchestrator.job_id"] == job_id
    assert run.data.params["training.max_steps"] == "150"
    assert run.data.params["workload.entrypoint"] == "tiny_workload:Tiny"
    assert run.info.run_id in output

    points = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in points] == list(range(1, 151)), "every step once"
    history = sandbox.history(job_id)
    assert [point.value for point in points] == [row["loss"] for row in history]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val_loss")] == [0, 150]

    names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "evaluation.json", "history.json", "loss.png", "goodput.json", "goodput.png"} <= names
    ledger = json.loads(sandbox.store(job_id).get(f"jobs/{job_id}/artifacts/goodput.json"))
    assert sum(ledger["seconds"].values()) == pytest.approx(ledger["worker_s"]), "over both runs"
    assert {f"goodput/{bucket}_s": seconds for bucket, seconds in ledger["seconds"].items()}.items() <= run.data.metrics.items()
    assert run.data.metrics["goodput/share"] == ledger["goodput_share"] > 0
    code, shown = sandbox.run("status", job_id)
    assert re.search(r"^goodput [\d.]+ % of \S+ of all workers: .*start [\dms.]+", shown, re.MULTILINE), shown

    (version,) = client.search_model_versions("name = 'tiny'")
    assert (version.run_id, version.tags["orchestrator.step"]) == (run.info.run_id, "150")
    prefix = run.data.tags["checkpoint.newest"]
    assert version.source == f"{sandbox.home.store.as_uri()}/{prefix}"
    code, output = sandbox.run("checkpoint", "ls", job_id, "--json")
    assert json.loads(output)["checkpoints"][0]["flags"][:1] == ["newest"] and "pinned" in output
    evaluation = json.loads(sandbox.store(job_id).get(f"jobs/{job_id}/artifacts/evaluation.json"))
    assert evaluation["after"]["loss"] < evaluation["before"]["loss"]


def test_a_tracking_server_that_is_not_there_costs_no_step_and_says_where_the_rest_is(sandbox):
    job_id = sandbox.submit(*TRACKED, "tracking.uri=http://127.0.0.1:9", "tracking.drain_timeout_s=2")
    job = sandbox.wait_ended(job_id)
    assert job.state is JobState.SUCCEEDED
    assert [row["step"] for row in sandbox.history(job_id)] == list(range(1, 151))
    warnings = [event.message for _, event in sandbox.client.events(job_id) if event.kind.name == "WARNING"]
    assert any("journal" in text for text in warnings), warnings
