"""`--json`: every command that prints has it, and what it prints is JSON. Those that need a cluster: tests/e2e/test_own_code.py."""

from __future__ import annotations

import contextlib
import io
import json

import pytest

from orchestrator.cli import _verbs, main
from orchestrator.cli.checkpoint import VERBS as CHECKPOINT_VERBS
from orchestrator.cli.jobspec import Switches
from orchestrator.control.records.store import JobStore
from orchestrator.errors import UserError
from orchestrator.events import Event, EventKind
from orchestrator.job import Job, JobState
from orchestrator.paths import Home, JobKeys
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, StorageSpec, TrainingSpec, WorkloadSpec
from orchestrator.storage import open_store

WITHOUT = {"completion", "dashboard", "serve"}
"""They print a script, or become a server."""
GROUPS = {"checkpoint": list(CHECKPOINT_VERBS), "user": ["add", "list", "renew", "revoke"]}
OVERRIDES = {"train", "submit"}
"""Their help is Hydra's; what they understand beside it is in `Switches`."""


def help_of(*words: str) -> str:
    shown = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(shown):
        main([*words, "--help"])
    return shown.getvalue()


def test_every_command_has_it() -> None:
    commands = [(verb,) for verb in _verbs() if verb not in WITHOUT | OVERRIDES | set(GROUPS)]
    commands += [(group, verb) for group, verbs in GROUPS.items() for verb in verbs]
    assert len(commands) > 15
    assert [words for words in commands if "--json" not in help_of(*words)] == []
    assert Switches.take(["a=1", "--json"]) == (Switches(dry_run=False, json=True, rehearse=None), ["a=1"])


@pytest.fixture
def job(home: Home) -> str:
    """One that succeeded."""
    spec = JobSpec(
        workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"), model=ModelSpec(name="m"), data=DataSpec(name="d"),
        training=TrainingSpec(max_steps=200, global_batch_size=8, micro_batch_size=2), storage=StorageSpec(url=home.store.as_uri()),
    )  # fmt: skip
    store = JobStore(home.jobs_db)
    lost = {"incident": "LOST", "node": "n1"}
    told = [Event(kind=EventKind.AGENT_LOST, job_id="tiny-1", time_s=1e10, message="gone", fields=lost)]
    store.put(Job(id="tiny-1", spec=spec, state=JobState.SUCCEEDED, reason="trained"), told)
    open_store(spec.storage).put(JobKeys("tiny-1").log_piece(1, 0, 0, 1.0), b"one\ntwo\n")
    return "tiny-1"


COMMANDS = [
    ("list",), ("status", "JOB"), ("events", "JOB"), ("logs", "JOB"), ("logs", "JOB", "--tail", "1"), ("wait", "JOB"), ("cancel", "JOB"),
    ("nodes",), ("nodes", "forgive", "n1"), ("prune",), ("version",), ("down",), ("doctor", "--only", "limits,network,tracking"),
    ("checkpoint", "ls", "JOB"), ("checkpoint", "gc", "JOB"), ("queue",), ("policy",), ("audit",), ("user", "add", "ann"), ("user", "list"),
    ("remove", "JOB", "--yes"),
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS)
def test_what_it_prints_is_json(words: tuple[str, ...], job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([job if word == "JOB" else word for word in words] + ["--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and (len(lines) == 1 or words[0] == "logs")
    for line in lines:
        assert isinstance(json.loads(line, parse_constant=pytest.fail), dict | list)


@pytest.mark.parametrize(("given", "workers"), [("--rehearse", 0), ("--rehearse=4", 4)])
def test_a_rehearsal_is_a_switch(given: str, workers: int) -> None:
    assert Switches.take([given, "a=1"])[0].rehearse == workers


@pytest.mark.parametrize("given", ["--rehearse=", "--rehearse=0", "--rehearse=-1", "--rehearse=all"])
def test_a_rehearsal_on_no_workers_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="allowed is --rehearse, or --rehearse=4"):
        Switches.take([given])
