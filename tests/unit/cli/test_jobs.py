"""`list`, `status`, `events`, `wait`, `logs` and `cancel` on an empty home and on one with a few jobs; none needs a cluster."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.cli.screen import command
from orchestrator.control.lock import ControllerLock
from orchestrator.control.records.store import JobStore
from orchestrator.events import Event, EventKind
from orchestrator.job import EndReason, Job, JobResult, JobState, Progress, job_from_dict
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import (
    ClusterSpec,
    DataSpec,
    JobSpec,
    ModelSpec,
    ResourcesSpec,
    StorageSpec,
    TrackingSpec,
    TrainingSpec,
    WorkloadSpec,
)
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
    progress = Progress(phase="training", step=50, max_steps=200, loss=1.5, committed_step=40, eta_s=90.0, restarts=2, preemptions=1)
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
    store.put(keys.log_piece(1, 0, 0, 10.0), b"zero: first\nzero: sec")
    store.put(keys.log_piece(1, 1, 0, 11.0), b"one: first\n")
    store.put(keys.log_piece(1, 0, 21, 12.0), b"ond\n")
    store.put(keys.log_piece(2, 0, 0, 20.0), b"zero: again\nzero: no end of line")
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


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "resume", "events", "wait"])
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
    head, *rows, last = said(capsys, "list").splitlines()
    assert head.split() == ["JOB", "STATE", "DONE", "ETA", "WORKERS", "GPUS", "POSITION", "RECOVERIES", "AGE", "NOW"]
    assert [row.split()[:8] for row in rows] == [
        ["resnet-failed", "failed", "3%", "-", "2", "-", "-", "0"],
        ["gpt-trains", "running", "25%", "1m30s", "0/2", "-", "-", "3"],
        ["gpt-waits", "queued", "0%", "-", "0/2", "-", "-", "0"],
    ]
    assert rows[0].split()[8:] == ["1m35s", "no", "such", "column"]
    assert rows[1].endswith("  step 50/200  loss 1.5000")
    assert rows[2].endswith("  waiting: needs 4 CPUs")
    assert last == f"next: {command('status gpt-waits', Home.find())}"


def test_the_list_as_json(jobs: JobStore, capsys: Capture) -> None:
    found = json.loads(said(capsys, "list", "--json"))
    assert [(row["id"], row["state"], row["percent"], row["num_workers"]) for row in found] == [
        ("resnet-failed", "failed", 3.5, 2), ("gpt-trains", "running", 25.0, 2), ("gpt-waits", "queued", 0.0, 2),
    ]  # fmt: skip
    assert (found[1]["eta_s"], found[1]["recoveries"], found[1]["progress"]["loss"], found[1]["workload"]) == (90.0, 3, 1.5, "tiny")
    assert (found[2]["reason"], found[2]["position"], found[2]["gpus_needed"]) == ("needs 4 CPUs", None, 0)


def test_gpus_that_a_job_has_of_those_that_it_needs(home: Home, capsys: Capture) -> None:
    on_gpus = dataclasses.replace(SPEC, resources=ResourcesSpec(num_workers=4, gpus_per_worker=1))
    placed = Job(id="a", spec=on_gpus, state=JobState.RUNNING, placement=(("n1", 2), ("n2", 1)))
    JobStore(home.jobs_db).put(placed)
    row = said(capsys, "list").splitlines()[1].split()
    assert row[4:6] == ["3/4", "3/4"]


def test_the_position_of_a_job_that_waits(home: Home, capsys: Capture) -> None:
    store = JobStore(home.jobs_db)
    store.put(Job(id="a", spec=SPEC, position=2))
    store.put(Job(id="b", spec=SPEC, state=JobState.RUNNING, position=1))
    assert [row.split()[6] for row in said(capsys, "list").splitlines()[1:3]] == ["2", "-"]
    assert [row["position"] for row in json.loads(said(capsys, "list", "--json"))] == [2, None]


def test_the_list_of_some_states(jobs: JobStore, home: Home, capsys: Capture) -> None:
    assert [row["id"] for row in json.loads(said(capsys, "list", "--state", "failed,queued", "--json"))] == ["resnet-failed", "gpt-waits"]
    assert said(capsys, "list", "--state", "cancelled") == f"no job is cancelled; {command('list', home)} shows all\n"
    assert "--state faild is not possible: allowed is queued" in said(capsys, "list", "--state", "faild", status=2)


def test_a_short_list_has_the_jobs_that_have_not_ended_then_the_newest(jobs: JobStore, home: Home, capsys: Capture) -> None:
    jobs.put(Job(id="new-failed", spec=SPEC, submitted_s=900.0, state=JobState.FAILED))
    assert [row["id"] for row in json.loads(said(capsys, "list", "--limit", "3", "--json"))] == ["gpt-trains", "gpt-waits", "new-failed"]
    lines = said(capsys, "list", "--limit", "1").splitlines()
    assert lines[1].startswith("gpt-waits") and lines[2] == f"3 more: {command('list --limit 0', home)}"
    assert len(said(capsys, "list", "--limit", "0").splitlines()) == 6
    assert "--limit -1 is not possible" in said(capsys, "list", "--limit", "-1", status=2)


def test_another_home_is_named_by_a_flag(jobs: JobStore, tmp_path: Path, capsys: Capture) -> None:
    assert said(capsys, "list", "--home", str(tmp_path / "other")).startswith("no jobs in")
    assert len(said(capsys, "list").splitlines()) == 5


def test_a_loss_that_is_no_number_is_still_json(home: Home, capsys: Capture) -> None:
    JobStore(home.jobs_db).put(Job(id="a", spec=SPEC, state=JobState.RUNNING, progress=Progress(step=1, loss=float("nan"))))
    text = said(capsys, "list", "--json")
    json.loads(text, parse_constant=pytest.fail)


# status


def test_status_shows_state_events_and_what_comes_next(jobs: JobStore, home: Home, capsys: Capture) -> None:
    first, event, last = said(capsys, "status", "gpt-trains").splitlines()
    assert first == "gpt-trains  running  step 50/200  loss 1.5000  ETA 1m30s  committed 40  restarts 2  preempted 1"
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
    jobs.tell_waiting([], [Event(kind=EventKind.WAITING, job_id="gpt-waits", time_s=301.0, message="x", fields={"n": 1})])
    values = json.loads(said(capsys, "status", "gpt-waits", "--json"))
    assert job_from_dict(values) == jobs.get("gpt-waits")
    events = [(event["seq"], event["kind"], event["fields"]) for event in values["events"]]
    assert events == [(1, "submitted", {}), (2, "waiting", {"n": 1})]


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "resume", "events", "wait"])
def test_an_unknown_job_is_refused_with_the_nearest(verb: str, jobs: JobStore, capsys: Capture) -> None:
    known = "resnet-failed, gpt-trains, gpt-waits"
    expected = f"orchestrator: no job is named 'gpt-wats'. Known: {known}. Did you mean 'gpt-waits'?\n"
    assert said(capsys, verb, "gpt-wats", status=2) == expected


def test_a_beginning_that_fits_two_jobs_is_refused(jobs: JobStore, capsys: Capture) -> None:
    assert "'gpt' fits 2 jobs: gpt-trains, gpt-waits." in said(capsys, "status", "gpt", status=2)


def test_status_shows_an_event_without_words(jobs: JobStore, capsys: Capture) -> None:
    jobs.tell_waiting([], [Event(kind=EventKind.WARNING, job_id="gpt-waits", time_s=1.0, message="")])
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
    store.put(keys.log_piece(1, 0, 0, 1.0), text[:1])
    store.put(keys.log_piece(1, 0, 1, 2.0), text[1:])
    assert said(capsys, "logs", "gpt-waits", "--rank", "0") == "é\n"


def test_a_line_that_a_killed_rank_left_half_is_not_joined_with_the_next_epoch(spec: JobSpec, jobs: JobStore, capsys: Capture) -> None:
    store, keys = open_store(spec.storage), JobKeys("gpt-waits")
    store.put(keys.log_piece(1, 0, 0, 1.0), b"killed in the mid")
    store.put(keys.log_piece(2, 0, 0, 2.0), b"started again\n")
    assert said(capsys, "logs", "gpt-waits", "--rank", "0") == "killed in the mid\nstarted again\n"


def test_the_last_lines_and_those_since_a_time(logs: ObjectStore, capsys: Capture) -> None:
    assert said(capsys, "logs", "resnet-failed", "--rank", "0", "--tail", "2") == "zero: again\nzero: no end of line\n"
    assert said(capsys, "logs", "resnet-failed", "--tail", "3", "-f").splitlines()[0] == "[rank 0] zero: second"
    since = ("--since", "1970-01-01T00:00:15+00:00")
    assert said(capsys, "logs", "resnet-failed", "--rank", "0", *since) == "zero: again\nzero: no end of line\n"
    assert said(capsys, "logs", "resnet-failed", "--since", "10m") == ""
    assert "--since yesterday is not possible: allowed is 90s" in said(capsys, "logs", "resnet-failed", "--since", "yesterday", status=2)
    assert "--tail 0 is not possible" in said(capsys, "logs", "resnet-failed", "--tail", "0", status=2)


def test_logs_as_json_go_on_from_any_line(logs: ObjectStore, capsys: Capture) -> None:
    rows = [json.loads(line) for line in said(capsys, "logs", "resnet-failed", "--json").splitlines()]
    assert [(row["rank"], row["epoch"], row["text"]) for row in rows] == [
        (0, 1, "zero: first"), (1, 1, "one: first"), (0, 1, "zero: second"), (0, 2, "zero: again"), (0, 2, "zero: no end of line"),
    ]  # fmt: skip
    for number, row in enumerate(rows):
        rest = said(capsys, "logs", "resnet-failed", "--json", "--after", row["offset"]).splitlines()
        assert [json.loads(line)["text"] for line in rest] == [later["text"] for later in rows[number + 1 :]]
    assert "allowed is the offset of a line of gpt-waits's logs" in said(capsys, "logs", "gpt-waits", "--after", "x", status=2)


# events and wait


def test_events_are_shown_in_order(jobs: JobStore, home: Home, capsys: Capture) -> None:
    jobs.tell_waiting([], [Event(kind=EventKind.ENDED, job_id="resnet-failed", time_s=195.0, message="no such column")])
    first, second, last = said(capsys, "events", "resnet-failed", "-f").splitlines()
    assert first.split()[2:] == ["submitted", "2", "workers"] and second.split()[2:] == ["ended", "no", "such", "column"]
    assert last == f"next: {command('logs resnet-failed', home)}"
    rows = [json.loads(line) for line in said(capsys, "events", "resnet-failed", "--after", "1", "--json").splitlines()]
    assert [(row["seq"], row["kind"], row["time_s"]) for row in rows] == [(2, "ended", 195.0)]


def test_wait_says_by_its_exit_status_how_jobs_ended(jobs: JobStore, home: Home, capsys: Capture) -> None:
    jobs.put(Job(id="good", spec=SPEC, state=JobState.SUCCEEDED, reason="trained 200 steps"))
    assert main(["wait", "good"]) == 0
    assert capsys.readouterr().out.splitlines() == ["good  succeeded  trained 200 steps", f"next: {command('status good', home)}"]
    assert main(["wait", "good", "resnet-failed"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"next: {command('status resnet-failed', home)}"
    assert main(["wait", "good", "gpt-waits", "--timeout", "0", "--json"]) == 124
    found = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["state"], row["end_reason"]) for row in found] == [("good", "succeeded", None), ("gpt-waits", "queued", None)]


def test_wait_ends_with_the_last_of_the_jobs(jobs: JobStore, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("time.sleep", lambda pause_s: jobs.update(jobs.get("gpt-waits"), state=JobState.CANCELLED))
    assert main(["wait", "gpt-waits", "--timeout", "3600"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("gpt-waits  cancelled") and captured.err.startswith("no control plane runs in")


@pytest.mark.parametrize(("flags", "status"), [(["--timeout", "0.5"], 124), ([], 125)])
def test_wait_for_a_server_that_is_away_is_not_the_failure_of_a_job(
    flags: list[str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_SERVER", "http://127.0.0.1:9")
    monkeypatch.setenv("ORCHESTRATOR_TOKEN", "token")
    monkeypatch.setattr("orchestrator.cli.events.PATIENCE_S", 0.2)
    began = time.monotonic()
    assert main(["wait", "gpt", *flags]) == status
    assert time.monotonic() - began >= (0.5 if flags else 0.2)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.endswith("Connection refused\n")
    assert captured.err.startswith("orchestrator: the server http://127.0.0.1:9 does not answer")


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


def test_a_job_that_waits_is_resumed_on_the_cluster_that_is_there_now(jobs: JobStore, spec: JobSpec, home: Home, capsys: Capture) -> None:
    elsewhere = dataclasses.replace(spec, cluster=ClusterSpec(address="127.0.0.1:1"), tracking=TrackingSpec(enabled=False))
    jobs.put(Job(id="moves", spec=elsewhere))
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        ControllerLock(home).publish(address, ready=True)  # by this process, which lives
        assert "moves is queued" in said(capsys, "resume", "moves", "--detach")
    assert jobs.get("moves").spec.cluster.address == address
