"""The command itself: verbs, exit codes, and what `train` shows without starting anything."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import HELP, main
from orchestrator.config import groups
from orchestrator.paths import Home


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in `folder`."""
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    return subprocess.run(command, cwd=folder, env={**os.environ, "COLUMNS": "120"}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("arguments", "status"), [(["version"], 0), (["explain", "--help"], 0), (["explain"], 2), (["nonsense"], 2)])
def test_a_process_leaves_with_the_status_and_has_said_all(arguments: list[str], status: int, tmp_path: Path) -> None:
    done = run(tmp_path, *arguments)
    said, unsaid = (done.stdout, done.stderr) if status == 0 else (done.stderr, done.stdout)
    assert done.returncode == status and said.endswith("\n") and not unsaid


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == HELP


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    verbs = capsys.readouterr().err.partition("Commands: ")[2].partition(".")[0].split(", ")
    assert len(verbs) == 28
    assert [verb for verb in verbs if f"  {verb}" not in HELP and f" {verb} " not in HELP] == []


@pytest.mark.parametrize(("verb", "near"), [("trian", "train"), ("stats", "status"), ("Train", "train"), ("--versoin", "version")])
def test_an_unknown_verb_is_refused_with_the_nearest(verb: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"orchestrator: '{verb}' is no command. Commands: train, submit, ")
    assert captured.err.endswith(f" Did you mean '{near}'?\n")
    assert captured.out == ""


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"orchestrator {version('orchestrator')}\n"


WITH_PARSER = (
    "resume", "list", "status", "logs", "events", "wait", "cancel", "dashboard", "doctor", "up", "down", "version", "nodes", "simulate",
)  # fmt: skip


@pytest.mark.parametrize("verb", WITH_PARSER)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"usage: orchestrator {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--jsn"], "unrecognized arguments: --jsn"),
        (["status"], "the following arguments are required: job"),
        (["logs", "a", "--rank", "one"], "argument --rank: invalid int value: 'one'"),
        (["version", "x"], "unrecognized arguments: x"),
        (["cancel", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_wrong_flags_are_refused_with_the_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"orchestrator: {said}\nusage: orchestrator {arguments[0]} [-h]")


@pytest.mark.parametrize("verb", ["train", "submit"])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "workload=resnt",
            "workload=resnt is not possible: allowed is bert, custom, gpt, resnet, seq2seq, text-classifier. Did you mean 'resnet'?",
        ),
        ("foo", "'foo' is no override: allowed is key=value, for example training.max_steps=100."),
        ("--dryrun", "'--dryrun' is no override: allowed is key=value, for example training.max_steps=100."),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_made(
    verb: str, override: str, said: str, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, override]) == 2
    assert capsys.readouterr().err == f"orchestrator: {said}\n"
    assert not home.root.exists()


def test_a_folder_of_the_users_own_is_asked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\n")
    for flags in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"], ["-cd", str(tmp_path)]):
        assert main(["train", "model=mime", *flags]) == 2
        assert capsys.readouterr().err.endswith("Did you mean 'mine'?\n")


def test_train_help_shows_groups_and_settings(tmp_path: Path, home: Home) -> None:
    done = run(tmp_path, "train", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for group, options in groups().items():
        assert f"{group}: {', '.join(options)}\n" in done.stdout
    assert "  max_steps: 800\n" in done.stdout
    assert not home.root.exists()


def test_train_cfg_job_shows_the_composed_configuration(tmp_path: Path, home: Home) -> None:
    done = run(tmp_path, "train", "--cfg", "job", "workload=resnet", "training.max_steps=7")
    assert (done.returncode, done.stderr) == (0, "")
    shown = yaml.safe_load(done.stdout)
    assert shown["workload"]["entrypoint"] == "workloads.resnet:ResNet"
    assert shown["training"]["max_steps"] == 7
    assert set(shown) == {*groups(), "name"}
    assert not home.root.exists()


def test_a_dry_run_shows_spec_worlds_and_deepspeed_and_makes_nothing(tmp_path: Path, home: Home) -> None:
    done = run(tmp_path, "train", "--dry-run", "workload=gpt", "parallelism.zero_stage=2", "resources.num_workers=3")
    assert (done.returncode, done.stderr) == (0, "")
    shown = yaml.safe_load(done.stdout)
    assert shown["spec"]["workload"]["code_dir"] == str(tmp_path)
    assert shown["legal_workers"] == {world: f"{6 // world} x 2 samples per rank and step" for world in (1, 2, 3, 6)}
    assert shown["deepspeed"]["zero_optimization"]["stage"] == 2
    assert shown["deepspeed"]["gradient_accumulation_steps"] == 2
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_dry_run_says_how_long_the_stages_of_a_pipeline_are_idle(tmp_path: Path) -> None:
    done = run(tmp_path, "train", "--dry-run", "workload=gpt", "parallelism.pipeline_parallel_size=2", "resources.num_workers=4")
    assert yaml.safe_load(done.stdout)["legal_workers"][4] == "3 x 2 samples per rank and step, stages idle for 25% of it"


def test_a_sweep_is_checked_whole_before_its_first_job(tmp_path: Path) -> None:
    done = run(tmp_path, "train", "--dry-run", "-m", "resources.num_workers=2,5")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("orchestrator: resources.num_workers=5 cannot share training.global_batch_size=12")


def test_a_sweep_is_one_job_for_each_combination(tmp_path: Path) -> None:
    done = run(tmp_path, "train", "--dry-run", "-m", "resources.num_workers=1,2", "training.seed=range(0,3)")
    assert done.returncode == 0, done.stderr
    specs = [page["spec"] for page in yaml.safe_load_all(done.stdout)]
    combinations = {(spec["resources"]["num_workers"], spec["training"]["seed"]) for spec in specs}
    assert combinations == {(workers, seed) for workers in (1, 2) for seed in (0, 1, 2)} and len(specs) == 6


def test_entry_points_are_workloads_by_themselves(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    done = run(tmp_path, "train", "--dry-run", "-m", "workload=mine:One,mine:Two")
    assert done.returncode == 0, done.stderr
    found = [page["spec"]["workload"] for page in yaml.safe_load_all(done.stdout)]
    assert [(spec["name"], spec["entrypoint"]) for spec in found] == [("custom", "mine:One"), ("custom", "mine:Two")]


def test_a_sweep_without_m_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "train", "--dry-run", "resources.num_workers=1,2")
    assert done.returncode == 2 and "resources.num_workers" in done.stderr and "-m" in done.stderr


def test_a_reader_that_has_left_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-u", "-m", "orchestrator.cli", "--help"]
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(command, cwd=tmp_path, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
