"""What the Tab key offers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.cli.completion import complete
from orchestrator.config import groups
from orchestrator.control.records.store import JobStore
from orchestrator.job import Job
from orchestrator.paths import Home
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec

SPEC = JobSpec(
    workload=WorkloadSpec(name="tiny", entrypoint="tiny:Tiny"),
    model=ModelSpec(name="m"),
    data=DataSpec(name="d"),
    training=TrainingSpec(max_steps=10, global_batch_size=8, micro_batch_size=2),
)


def test_verbs_are_completed() -> None:
    assert complete("orchestrator tr") == ["train"]
    assert complete("orchestrator su") == ["submit"]
    assert complete("orchestrator si") == ["simulate"]
    assert complete("orchestrator d") == ["dashboard", "doctor", "down"]
    assert complete("orchestrator x") == []
    assert complete("orchestrator ") == [
        "train", "submit", "resume", "list", "status", "logs", "events", "wait", "cancel", "remove", "dashboard", "doctor", "up", "down",
        "version", "queue", "explain", "priority", "policy", "serve", "user", "audit", "store", "prune", "nodes", "simulate",
        "checkpoint", "completion",
    ]  # fmt: skip


def test_names_of_groups_are_completed() -> None:
    assert {f"{group}=" for group in groups()} <= set(complete("orchestrator train "))
    assert complete("orchestrator submit wor") == ["workload.", "workload="]
    assert complete("orchestrator train sch") == ["scheduling.", "scheduling="]


def test_options_of_a_group_are_completed() -> None:
    assert complete("orchestrator train workload=") == [
        f"workload={name}" for name in ("bert", "custom", "gpt", "resnet", "seq2seq", "text-classifier")
    ]
    assert complete("orchestrator train workload=r") == ["workload=resnet"]
    assert complete("orchestrator submit workload=gpt optimizer=") == [
        f"optimizer={name}" for name in ("adafactor", "adamw", "bert", "gpt", "gpt-large", "lion", "muon", "resnet", "sgd", "t5")
    ]


def test_settings_are_completed() -> None:
    assert complete("orchestrator train training.max") == ["training.max_steps="]
    assert complete("orchestrator train workload=gpt storage.") == [
        f"storage.{name}=" for name in ("connect_timeout_s", "endpoint_url", "max_attempts", "read_timeout_s", "region", "url")
    ]


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "resume", "events"])
def test_jobs_are_completed_where_one_is_named(home: Home, verb: str) -> None:
    store = JobStore(home.jobs_db)
    for number, name in enumerate(("gpt-bbb", "gpt-aaa", "resnet-ccc")):
        store.put(Job(id=name, spec=SPEC, submitted_s=float(number)))
    assert complete(f"orchestrator {verb} ") == ["gpt-bbb", "gpt-aaa", "resnet-ccc"]
    assert complete(f"orchestrator {verb} gpt-a") == ["gpt-aaa"]
    assert complete(f"orchestrator {verb} gpt-aaa ") == []
    assert complete("orchestrator wait gpt-aaa gpt-b") == ["gpt-bbb"]


def test_traces_folders_and_settings_of_a_simulation_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traces" / "may").mkdir(parents=True)
    for name in ("t[1].csv", "traces/a.csv", "traces/b.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert complete("orchestrator simulate t") == ["t[1].csv", "traces/"]
    assert complete("orchestrator simulate traces/") == ["traces/a.csv", "traces/may/"]
    assert complete(f"orchestrator simulate {tmp_path}/traces/a") == [f"{tmp_path}/traces/a.csv"]
    assert complete("orchestrator simulate traces/a.csv cluster") == ["cluster."]
    assert complete("orchestrator simulate traces/a.csv cluster.n") == ["cluster.nodes="]
    assert complete("orchestrator simulate --json traces/a.csv cluster.nodes=2 s") == ["scheduler.", "scheduler=", "simulation."]
    assert complete("orchestrator simulate traces/a.csv scheduler=f") == ["scheduler=fifo"]


def test_verbs_of_checkpoint_are_completed_and_then_jobs(home: Home) -> None:
    JobStore(home.jobs_db).put(Job(id="gpt-aaa", spec=SPEC, submitted_s=0.0))
    assert complete("orchestrator checkpoint ") == ["ls", "verify", "diff", "pin", "unpin", "export", "gc"]
    assert complete("orchestrator checkpoint u") == ["unpin"]
    assert complete("orchestrator checkpoint ls g") == ["gpt-aaa"]
    assert complete("orchestrator checkpoint ls gpt-aaa ") == []


def test_without_jobs_there_is_nothing_to_complete_and_nothing_is_made(home: Home) -> None:
    assert complete("orchestrator status ") == []
    assert not home.root.exists()


@pytest.mark.parametrize("verb", ["list", "version", "down", "nonsense"])
def test_verbs_that_take_no_name_complete_nothing(verb: str) -> None:
    assert complete(f"orchestrator {verb} ") == []


def test_the_query_answers_for_the_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COMP_LINE", "orchestrator d")
    assert main(["completion", "query"]) == 0
    assert capsys.readouterr().out == "dashboard\ndoctor\ndown\n"


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 2
    assert "completion is there for bash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "replies", "reply"),
    [
        ("orchestrator d", "dashboard down", ["dashboard", "down"]),
        ("orchestrator train workload=r", "workload=resnet", ["resnet"]),  # bash has cut the word at `=`
        ("orchestrator train training.max", "training.max_steps=", ["training.max_steps="]),
    ],
)
def test_the_script_works_in_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, replies: str, reply: list[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "script"
    doubles = f"compopt() {{ :; }}\norchestrator() {{ [[ $COMP_LINE == '{line}' ]] && echo {replies}; }}\n"
    script.write_text(doubles + capsys.readouterr().out)
    ask = f". {script}; COMP_LINE='{line} behind'; COMP_POINT={len(line)}; _orchestrator_complete; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (reply, "")


def test_settings_of_the_chosen_workload_are_completed() -> None:
    assert complete("orchestrator train workload=resnet workload.options.") == [
        f"workload.options.{name}=" for name in ("flip", "label_smoothing", "max_crop_ratio", "min_crop")
    ]


def test_an_empty_line_completes_nothing() -> None:
    assert complete("") == []


def test_a_flag_completes_nothing() -> None:
    assert complete("orchestrator train --d") == []
