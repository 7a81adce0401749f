"""`list`, `status`, `logs` and `cancel` on an empty home and on one with a few jobs; none needs a cluster."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.cli.screen import command
from orchestrator.control.store import JobStore
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, Job, JobResult, JobState, Progress, job_from_dict
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ResourcesSpec, StorageSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import ObjectStore, open_store
from orchestrator.supervision.accounting import Bucket
from orchestrator.supervision.ledger import Ledger

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=200, global_batch_size=8, micro_batch_size=2),
    resources=ResourcesSpec(num_workers=2),
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def spec(home: Home) -> JobSpec:
    return dataclasses.replace(SPEC, storage=StorageSpec(url=home.store.as_uri()))


@pytest.fixture
def jobs(home: Home, spec: JobSpec) -> JobStore:
    """One job that waits, one that trains, one that failed."""
    store = JobStore(home.jobs_db)
    waiting = Job(id="gpt-waits", spec=spec, submitted_s=300.0, reason="needs 4 CPUs")
    progress = Progress(phase="training", step=50, max_steps=200, loss=1.5, committed_step=40)
    training = Job(id="gpt-trains", spec=spec, submitted_s=200.0, state=JobState.RUNNING, progress=progress)
    result = JobResult(end_reason=EndReason.USER_ERROR, message="no such column\nmore", step=7, mlflow_run_id="f00d", resumable=True)
    failed = Job(
        id="resnet-failed", spec=spec, submitted_s=100.0, ended_s=195.0, state=JobState.FAILED, reason="no such column\nmore",
        progress=Progress(step=7), result=result,
    )  # fmt: skip
    for job in (waiting, training, failed):
        store.put(job, [Event(kind=EventKind.SUBMITTED, job_id=job.id, time_s=job.submitted_s, message="2 workers\nof one rank each")])
    return store


@pytest.fixture
def logs(spec: JobSpec, jobs: JobStore) -> ObjectStore:
    """What two ranks of the job that failed printed: rank 0 in pieces, and again after a restart."""
    store, keys = open_store(spec.storage), JobKeys("resnet-failed")
    store.put(keys.log_piece(1, 0, 0), b"zero: first\nzero: sec")
    store.put(keys.log_piece(1, 0, 21), b"ond\n")
    store.put(keys.log_piece(1, 1, 0), b"one: first\n")
    store.put(keys.log_piece(2, 0, 0), b"zero: again\nzero: no end of line")
    return store


def said(capsys: Capture, *arguments: str, status: int = 0) -> str:
    """What a command prints: on stdout, or on stderr if it fails."""
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert "" in (captured.out, captured.err)
    return captured.out if status == 0 else captured.err


# an empty home


def test_a_list_of_no_jobs(home: Home, capsys: Capture) -> None:
    assert said(capsys, "list") == f"no jobs in {home.root}; `orchestrator train` starts one\n"
    assert json.loads(said(capsys, "list", "--json")) == []
    assert not home.root.exists()


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "resume"])
def test_a_job_of_an_empty_home_is_not_found_and_nothing_is_made(verb: str, home: Home, capsys: Capture) -> None:
    expected = f"orchestrator: no job is named 'gpt': there are no jobs in {home.root}; `orchestrator train` starts one\n"
    assert said(capsys, verb, "gpt", status=2) == expected
    assert not home.root.exists()


def test_there_is_no_dashboard_without_runs(home: Home, capsys: Capture) -> None:
    assert said(capsys, "dashboard", status=2) == f"orchestrator: there are no runs in {home.mlflow}; `orchestrator train` makes one\n"


def test_there_is_no_cluster_to_stop(capsys: Capture) -> None:
    assert said(capsys, "down") == "no local cluster runs\n"


# list


def test_the_list_shows_every_job_oldest_first(jobs: JobStore, capsys: Capture) -> None:
    head, *rows = said(capsys, "list").splitlines()
    assert head.split() == ["JOB", "STATE", "DONE", "WORKERS", "AGE", "NOW"]
    assert [row.split()[:4] for row in rows] == [
        ["resnet-failed", "failed", "3%", "2"], ["gpt-trains", "running", "25%", "2"], ["gpt-waits", "queued", "0%", "2"],
    ]  # fmt: skip
    assert rows[0].split()[4:] == ["1m35s", "no", "such", "column"]
    assert rows[1].endswith("  step 50/200  loss 1.5000  committed 40")
    assert rows[2].endswith("  waiting: needs 4 CPUs")


def test_the_list_as_json_holds_whole_jobs(jobs: JobStore, capsys: Capture) -> None:
    found = json.loads(said(capsys, "list", "--json"))
    assert [job_from_dict(values) for values in found] == jobs.all()
    assert [values["state"] for values in found] == ["failed", "running", "queued"]


def test_another_home_is_named_by_a_flag(jobs: JobStore, tmp_path: Path, capsys: Capture) -> None:
    assert said(capsys, "list", "--home", str(tmp_path / "other")).startswith("no jobs in")
    assert len(said(capsys, "list").splitlines()) == 4


def test_a_loss_that_is_no_number_is_still_json(home: Home, capsys: Capture) -> None:
    JobStore(home.jobs_db).put(Job(id="a", spec=SPEC, state=JobState.RUNNING, progress=Progress(step=1, loss=float("nan"))))
    text = said(capsys, "list", "--json")
    json.loads(text, parse_constant=pytest.fail)


# status


def test_status_shows_state_events_and_what_comes_next(jobs: JobStore, home: Home, capsys: Capture) -> None:
    first, event, last = said(capsys, "status", "gpt-trains").splitlines()
    assert first == "gpt-trains  running  step 50/200  loss 1.5000  committed 40"
    assert event.split(maxsplit=2)[2].split() == ["submitted", "2", "workers"]
    assert last == f"next: {command('logs -f gpt-trains', home)}"


def test_status_of_a_job_that_ended_offers_to_resume_it(jobs: JobStore, home: Home, capsys: Capture) -> None:
    lines = said(capsys, "status", "resnet").splitlines()  # the only one that begins so
    assert lines[0] == "resnet-failed  failed  no such column"
    assert lines[-2:] == [f"MLflow run f00d   ({command('dashboard', home)})", f"next: {command('resume resnet-failed', home)}"]


def with_ledger(jobs: JobStore, **seconds: float) -> None:
    """Written down for `resnet-failed` until five seconds before its end."""
    buckets = {Bucket(name): spent_s for name, spent_s in seconds.items()}
    ledger = Ledger(until_s=190.0, wall_s=90.0, worker_s=sum(buckets.values()), seconds=buckets, run=1, closed=True)
    job = jobs.get("resnet-failed")
    jobs.update(job, progress=dataclasses.replace(job.progress, ledger=ledger.to_dict()))


def test_status_says_where_the_workers_time_went(jobs: JobStore, capsys: Capture) -> None:
    with_ledger(jobs, queue=20.0, start=10.0, step=142.0, lost=8.0)
    line = next(line for line in said(capsys, "status", "resnet").splitlines() if line.startswith("goodput"))
    assert line == "goodput 83.5 % of 2m50s of all workers: step 2m22s, queue 20.0s, start 10.0s, idle 10.0s, lost 8.0s"
    told = json.loads(said(capsys, "status", "resnet", "--json"))["goodput"]
    assert told["seconds"] == {"queue": 20.0, "start": 10.0, "step": 142.0, "lost": 8.0, "idle": 10.0} | {
        bucket.value: 0.0 for bucket in Bucket if bucket.value not in ("queue", "start", "step", "lost", "idle")
    }
    assert told["worker_s"] == sum(told["seconds"].values()) == 190.0


def test_status_of_a_job_that_waits_counts_the_queue(jobs: JobStore, capsys: Capture) -> None:
    assert "goodput" not in said(capsys, "status", "gpt-waits")
    told = json.loads(said(capsys, "status", "gpt-waits", "--json"))["goodput"]
    assert told["seconds"]["queue"] == told["worker_s"] > 0
    assert json.loads(said(capsys, "status", "gpt-trains", "--json"))["goodput"] is None


def test_status_as_json_holds_job_and_events(jobs: JobStore, capsys: Capture) -> None:
    jobs.append_events("gpt-waits", [Event(kind=EventKind.WAITING, job_id="gpt-waits", time_s=301.0, message="x", fields={"n": 1})])
    values = json.loads(said(capsys, "status", "gpt-waits", "--json"))
    assert job_from_dict(values) == jobs.get("gpt-waits")
    events = [(event["seq"], event["kind"], event["fields"]) for event in values["events"]]
    assert events == [(1, "submitted", {}), (2, "waiting", {"n": 1})]


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "resume"])
def test_an_unknown_job_is_refused_with_the_nearest(verb: str, jobs: JobStore, capsys: Capture) -> None:
    known = "resnet-failed, gpt-trains, gpt-waits"
    expected = f"orchestrator: no job is named 'gpt-wats'. Known: {known}. Did you mean 'gpt-waits'?\n"
    assert said(capsys, verb, "gpt-wats", status=2) == expected


def test_a_beginning_that_fits_two_jobs_is_refused(jobs: JobStore, capsys: Capture) -> None:
    assert "'gpt' fits 2 jobs: gpt-trains, gpt-waits." in said(capsys, "status", "gpt", status=2)


def test_status_shows_an_event_without_words(jobs: JobStore, capsys: Capture) -> None:
    jobs.append_events("gpt-waits", [Event(kind=EventKind.WARNING, job_id="gpt-waits", time_s=1.0, message="")])
    assert "warning" in said(capsys, "status", "gpt-waits")


# logs


def test_a_job_that_printed_nothing_has_no_logs(jobs: JobStore, capsys: Capture) -> None:
    assert said(capsys, "logs", "gpt-waits") == ""


@pytest.mark.parametrize("follow", [[], ["-f"]])
def test_logs_are_whole_lines_of_all_ranks_over_restarts(follow: list[str], logs: ObjectStore, capsys: Capture) -> None:
    assert said(capsys, "logs", "resnet-failed", *follow).splitlines() == [
        "[rank 1] one: first" if index == 1 else f"[rank 0] zero: {words}"
        for index, words in enumerate(["first", "", "second", "again", "no end of line"])
    ]


def test_logs_of_one_rank_have_no_mark(logs: ObjectStore, capsys: Capture) -> None:
    assert said(capsys, "logs", "resnet-failed", "--rank", "0") == "zero: first\nzero: second\nzero: again\nzero: no end of line\n"
    assert said(capsys, "logs", "resnet-failed", "--rank", "1") == "one: first\n"
    assert said(capsys, "logs", "resnet-failed", "--rank", "2") == ""


def test_a_letter_that_was_cut_between_two_pieces_is_whole(spec: JobSpec, jobs: JobStore, capsys: Capture) -> None:
    store, keys, text = open_store(spec.storage), JobKeys("gpt-waits"), "é\n".encode()
    store.put(keys.log_piece(1, 0, 0), text[:1])
    store.put(keys.log_piece(1, 0, 1), text[1:])
    assert said(capsys, "logs", "gpt-waits", "--rank", "0") == "é\n"


def test_a_line_that_a_killed_rank_left_half_is_not_joined_with_the_next_epoch(spec: JobSpec, jobs: JobStore, capsys: Capture) -> None:
    store, keys = open_store(spec.storage), JobKeys("gpt-waits")
    store.put(keys.log_piece(1, 0, 0), b"killed in the mid")
    store.put(keys.log_piece(2, 0, 0), b"started again\n")
    assert said(capsys, "logs", "gpt-waits", "--rank", "0") == "killed in the mid\nstarted again\n"


# cancel


@pytest.mark.parametrize(("flags", "mode", "words"), [([], "drain", " after a checkpoint"), (["--now"], "now", "")])
def test_cancel_asks_a_queued_job_to_stop(
    flags: list[str], mode: str, words: str, jobs: JobStore, home: Home, capsys: Capture
) -> None:
    expected = [f"gpt-waits is asked to stop{words}", f"go on later: {command('resume gpt-waits', home)}"]
    assert said(capsys, "cancel", "gpt-w", *flags).splitlines() == expected
    job = jobs.get("gpt-waits")
    assert (job.stop_requested, job.state) == (mode, JobState.QUEUED)
    assert jobs.events("gpt-waits")[-1][1].kind is EventKind.STOP_REQUESTED
    assert jobs.get("gpt-trains").stop_requested == ""


def test_cancel_again_asks_once(jobs: JobStore, capsys: Capture) -> None:
    assert said(capsys, "cancel", "gpt-waits") == said(capsys, "cancel", "gpt-waits")
    assert len(jobs.events("gpt-waits")) == 2


def test_cancel_of_a_job_that_ended_changes_nothing(jobs: JobStore, capsys: Capture) -> None:
    before = jobs.get("resnet-failed")
    assert said(capsys, "cancel", "resnet-failed") == "resnet-failed has ended already: failed\n"
    assert jobs.get("resnet-failed") == before


# resume, as far as it goes without a cluster


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=gpt-tiny", "model cannot change when a job is resumed"),
        ("training.max_step=9", "Did you mean 'training.max_steps'?"),
        ("resources.num_workers=3", "need a number of workers among 1, 2, 4."),
    ],
)
def test_wrong_overrides_of_resume_are_refused_and_the_job_stays(override: str, words: str, jobs: JobStore, capsys: Capture) -> None:
    before = jobs.get("resnet-failed")
    assert words in said(capsys, "resume", "resnet-failed", override, status=2)
    assert jobs.get("resnet-failed") == before


def test_flags_of_resume_may_stand_before_the_overrides(jobs: JobStore, capsys: Capture) -> None:
    assert "model cannot change" in said(capsys, "resume", "resnet-failed", "--detach", "model=gpt-tiny", status=2)
