"""Figures as people read them, and one line that does not repeat."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.screen import Bar, Screen, best_line, command, duration, size, state_line, table, workers
from orchestrator.job import Job, JobState, Progress
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ResourcesSpec, TrainingSpec, WorkloadSpec

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)


def line(state: JobState, reason: str = "", **progress: object) -> str:
    return state_line(Job(id="a", spec=SPEC, state=state, reason=reason, progress=Progress(**progress)))


def test_the_best_checkpoint_is_named_with_its_figure() -> None:
    job = Job(id="a", spec=SPEC, progress=Progress(best_step=7, best_value=0.43218765))
    assert best_line(job) == "best checkpoint  step 7: loss 0.432188"


# duration


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0s"), (0, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (60, "1m00s"), (95, "1m35s"),
        (3599, "59m59s"), (3600, "1h00m"), (3660, "1h01m"), (90_000, "25h00m"),
    ],
)  # fmt: skip
def test_a_duration_is_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@given(st.integers(0, 10**7))
def test_a_duration_loses_less_than_a_minute(seconds: int) -> None:
    units = {"h": 3600, "m": 60, "s": 1}
    told = sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration(seconds)))
    assert told == (seconds if seconds < 3600 else seconds // 60 * 60)


# table


def test_the_columns_of_a_table_begin_under_their_heads() -> None:
    assert table(("JOB", "NOW"), [("a-long-name", "x"), ("b", "")]) == "JOB          NOW\na-long-name  x\nb"


def test_a_table_without_rows_is_its_head() -> None:
    assert table(("A", "B"), []) == "A  B"


def test_a_row_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        table(("A", "B"), [("1", "2", "3")])


# command


PROGRAM = Path(sys.prefix, "bin", "orchestrator")


def test_a_command_is_short_where_the_shell_finds_this_program(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(PROGRAM.parent))
    assert command("list", home) == f"orchestrator list --home {home.root}"


def test_a_command_names_the_way_where_the_shell_finds_none_or_another(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "orchestrator"
    other.touch(mode=0o755)
    for path in ("", str(tmp_path)):
        monkeypatch.setenv("PATH", path)
        monkeypatch.chdir(tmp_path)
        assert command("list", home) == f"{PROGRAM} list --home {home.root}"
        monkeypatch.chdir(sys.prefix)
        assert command("list", home) == f"bin/orchestrator list --home {home.root}"


def test_a_command_names_only_a_home_that_is_not_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRATOR_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command("list", Home.find()).endswith("orchestrator list")
    assert command("list", Home(tmp_path / "x")).endswith(f"orchestrator list --home {tmp_path / 'x'}")


def test_a_command_can_be_pasted_whatever_the_folder_is_called(tmp_path: Path) -> None:
    assert shlex.split(command("list", Home(tmp_path / "my home")))[1:] == ["list", "--home", str(tmp_path / "my home")]


# state_line


@pytest.mark.parametrize(
    ("state", "reason", "progress", "shown"),
    [
        (JobState.QUEUED, "", {}, "waiting: for the controller"),
        (JobState.QUEUED, "needs 4 CPUs", {"step": 5, "loss": 1.0}, "waiting: needs 4 CPUs"),
        (JobState.STARTING, "", {}, "starting"),
        (JobState.STARTING, "", {"phase": "preparing data"}, "preparing data"),
        (JobState.RUNNING, "", {"phase": "training"}, "training"),
        (JobState.RUNNING, "", {"phase": "training", "step": 3, "max_steps": 10, "loss": 2.0}, "step 3/10  loss 2.0000"),
        (JobState.RUNNING, "", {"step": 3, "max_steps": 10, "loss": 2.0}, "step 3/10  loss 2.0000"),
        (JobState.RUNNING, "", {"phase": "evaluating", "step": 3, "max_steps": 10, "loss": 2.0}, "step 3/10  loss 2.0000  evaluating"),
        (JobState.RUNNING, "", {"phase": "evaluating", "loss": None}, "evaluating"),
        (JobState.RECOVERING, "", {"phase": "starting 2 workers", "step": 3, "max_steps": 10, "loss": 2.0, "restarts": 1},
         "step 3/10  loss 2.0000  restarts 1  starting 2 workers"),
        (JobState.RECOVERING, "", {}, "recovering"),
        (JobState.DRAINING, "", {"phase": "saving"}, "saving"),
        (JobState.SUCCEEDED, "", {}, "succeeded"),
    ],
)  # fmt: skip
def test_what_a_job_does_now(state: JobState, reason: str, progress: dict[str, object], shown: str) -> None:
    assert line(state, reason, **progress) == shown


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        ({"tokens_per_s": 999.4}, "999 tok/s"),
        ({"tokens_per_s": 1234.0}, "1.2k tok/s"),
        ({"tokens_per_s": 2.5e6, "samples_per_s": 3.0}, "2.5M tok/s"),
        ({"tokens_per_s": 3e9}, "3.0G tok/s"),
        ({"samples_per_s": 12.0}, "12 samples/s"),
        ({"eta_s": 95.0}, "ETA 1m35s"),
        ({"eta_s": 0.0}, "ETA 0s"),
        ({"committed_step": 0}, "committed 0"),
        ({"tokens_per_s": 10.0, "eta_s": 5.0, "committed_step": 50, "restarts": 2}, "10 tok/s  ETA 5s  committed 50  restarts 2"),
    ],
)
def test_figures_of_training(progress: dict[str, object], shown: str) -> None:
    assert line(JobState.RUNNING, step=60, max_steps=100, loss=0.12345, **progress) == f"step 60/100  loss 0.1235  {shown}"


# Screen


def test_fewer_workers_than_asked_for_are_shown_while_they_run() -> None:
    spec = dataclasses.replace(SPEC, resources=ResourcesSpec(num_workers=4, min_workers=1))
    progress = Progress(step=3, max_steps=10, loss=1.0)
    job = Job(id="a", spec=spec, state=JobState.RUNNING, progress=progress, placement=(("n1", 1), ("n2", 1)))
    assert (workers(job), state_line(job)) == ("2 of 4", "step 3/10  loss 1.0000  workers 2 of 4")
    for placement in ((("n1", 4),), ()):
        other = dataclasses.replace(job, placement=placement)
        assert (workers(other), state_line(other)) == ("4", "step 3/10  loss 1.0000")


def test_elsewhere_than_on_a_terminal_nothing_is_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    for text in ("waiting: x", "waiting: x", "training", "training", "waiting: x"):
        screen.line(text)
    assert capsys.readouterr().out == "waiting: x\ntraining\nwaiting: x\n"


def test_new_figures_alone_are_no_news_elsewhere_than_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    for step in range(1, 200):
        screen.line(f"step {step}/200  loss {1 / step:.4f}  {step}.0k tok/s  ETA {duration(20_000 - 100 * step)}  committed 1")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "step 1/200  loss 1.0000  1.0k tok/s  ETA 5h31m  committed 1"
    assert len(shown) < 10  # one in five seconds, were the machine this slow
    screen.line("step 200/200  loss 0.0050  1.0M tok/s  ETA 0s  committed 1  evaluating")
    assert capsys.readouterr().out == "step 200/200  loss 0.0050  1.0M tok/s  ETA 0s  committed 1  evaluating\n"


def test_what_is_said_stays(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.say("one")
    screen.say("one")
    screen.say()
    assert capsys.readouterr().out == "one\none\n\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", "20")
    return 20


def test_a_terminal_shows_one_line_that_changes(columns: int) -> None:
    with contextlib.redirect_stdout(Terminal()) as shown:
        screen = Screen()
        for text in ("step 1", "step 1", "step 2"):
            screen.line(text)
    assert shown.getvalue() == f"\r{'step 1':<19}\r{'step 2':<19}"


def test_a_line_never_breaks_on_a_narrow_terminal(columns: int) -> None:
    with contextlib.redirect_stdout(Terminal()) as shown:
        Screen().line("x" * 100)
    assert shown.getvalue() == "\r" + "x" * (columns - 1)


def test_what_is_said_on_a_terminal_wipes_the_line(columns: int) -> None:
    with contextlib.redirect_stdout(Terminal()) as shown:
        screen = Screen()
        screen.line("step 1")
        screen.say("done")
        screen.say("and more")
    assert shown.getvalue() == f"\r{'step 1':<19}\r{' ' * 19}\rdone\nand more\n"


# a bar


def bar_said(stream: io.StringIO, times: list[float]) -> str:
    with contextlib.redirect_stderr(stream), Bar("verifying", 1_000_000, clock=iter([0.0, *times]).__next__) as bar:
        bar.expect(1_000_000)
        for _ in times:
            bar.add(500_000)
    return stream.getvalue()


def test_a_bar_on_a_terminal_shows_share_rate_and_time_left_and_is_wiped() -> None:
    said = bar_said(Terminal(), [1.0, 1.01, 2.0])
    assert "verifying  [######..................]  500.0 kB of 2.0 MB  500.0 kB/s  ETA 3s" in said
    assert said.count("verifying") == 2  # the second is too soon
    assert said.endswith(" \r")


def test_elsewhere_a_bar_is_a_line_now_and_then() -> None:
    assert bar_said(io.StringIO(), [1.0, 2.0]) == ""
    assert bar_said(io.StringIO(), [6.0, 7.0, 12.0]).count("\n") == 2


def test_a_bar_counts_in_the_words_that_it_is_given() -> None:
    clock = iter([0.0, 2.0]).__next__
    with contextlib.redirect_stderr(Terminal()) as stream, Bar("las", 4_000, clock, amount=lambda count: f"{count:,.0f} jobs") as bar:
        bar.add(1_000)
    assert "las  [######..................]  1,000 jobs of 4,000 jobs  500 jobs/s  ETA 6s" in stream.getvalue()


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1536000, "1.5 MB"), (2.5e9, "2.5 GB"), (3e12, "3.0 TB"), (1000, "1.0 kB")]
)
def test_sizes_are_short(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text
