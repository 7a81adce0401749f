"""The list that is read without SQLAlchemy is the one that is read with it."""

from __future__ import annotations

import dataclasses
import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.client import SERVER_VARIABLE
from orchestrator.control.database import DATABASE_VARIABLE, choose
from orchestrator.control.quick_list import ELSEWHERE, quick_list
from orchestrator.control.store import JobStore
from orchestrator.job import Job, JobState, Progress
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ResourcesSpec, TrainingSpec, WorkloadSpec

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """With a job of each state and more, also of the same time of submission."""
    home, chance = Home(tmp_path), random.Random(1)
    store = JobStore(home.jobs_db)
    for number, state in enumerate(itertools.chain(*[JobState] * 6)):
        resources = ResourcesSpec(num_workers=chance.choice([1, 2, 4]), gpus_per_worker=chance.choice([0, 1]))
        loss, eta_s = chance.choice([None, 1.5, float("nan")]), chance.choice([None, 9.0])
        job = Job(
            id=f"job-{chance.randrange(10**6)}", spec=dataclasses.replace(SPEC, resources=resources), state=state, tenant="a",
            progress=Progress(step=number % 11, loss=loss, restarts=number % 3, eta_s=eta_s), submitted_s=float(number // 3),
            reason="é\nmore", placement=(("n1", 1),) if state.active else (), position=number,
        )  # fmt: skip
        store.put(job)
    return home


@pytest.mark.parametrize("states", [None, [JobState.QUEUED], [JobState.FAILED, JobState.RUNNING], []])
@pytest.mark.parametrize("limit", [0, 1, 7, 20, 1000])
def test_both_lists_are_the_same(states: list[JobState] | None, limit: int, home: Home) -> None:
    store = JobStore(home.jobs_db)
    found = quick_list(home, states, limit)
    assert found is not None
    assert repr(found[0]) == repr(store.summaries(states, limit)) and found[1] == store.count(states)  # by words: NaN is not itself


def test_what_it_does_not_know_is_left_to_the_store(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(ELSEWHERE) == {SERVER_VARIABLE, DATABASE_VARIABLE}
    assert quick_list(home, None, 0) is not None and quick_list(Home(tmp_path / "none"), None, 0) is None
    for name in ELSEWHERE:
        with monkeypatch.context() as changed:
            changed.setenv(name, "http://127.0.0.1:9")
            assert quick_list(home, None, 0) is None
    JobStore(home.jobs_db).set_meta("schema_version", 1)
    assert quick_list(home, None, 0) is None
    choose(home, "sqlite:////other")
    assert quick_list(home, None, 0) is None
    broken = Home(tmp_path / "broken")
    broken.root.mkdir()
    broken.jobs_db.write_bytes(b"no database" * 100)
    assert quick_list(broken, None, 0) is None


def test_the_command_imports_no_sqlalchemy(home: Home) -> None:
    program = (
        "import sys; from orchestrator.cli import main; code = main(['list', '--home', sys.argv[1]]); "
        "sys.exit(code or 'sqlalchemy' in sys.modules or 'hydra' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(home.root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "job-" in done.stdout, done.stderr
