"""The verbs that take a job's settings: `train` and `submit`. They run through `hydra.main`, so that every Hydra habit works."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from orchestrator import layout
from orchestrator.chaos.plan import plan
from orchestrator.cli.keeping import check_storage, secrets_for, with_package
from orchestrator.cli.screen import Screen, as_json, command
from orchestrator.config import combinations, conf_dir, job_spec, load_job_spec, spelled_out
from orchestrator.errors import ConfigError, OrchestratorError, UserError
from orchestrator.job import job_to_dict
from orchestrator.paths import Home
from orchestrator.spec import JobSpec, Precision, to_dict

if TYPE_CHECKING:
    from orchestrator.control.planning.policy import ChosenPolicy

_HYDRA_ONLY = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--resolve", "--package", "-p")
_MULTIRUN = ("--multirun", "-m")
_POLICY = ("scheduler=", "scheduler.")
"""What begins so is not the job's: it is of a control plane that is started for it."""



def train(arguments: list[str]) -> int:
    return _run("train", arguments, _train)


def submit(arguments: list[str]) -> int:
    return _run("submit", arguments, _submit)


@dataclass(frozen=True)
class Switches:
    """What the command line says beside Hydra's arguments."""

    dry_run: bool
    json: bool
    rehearse: int | None
    """With so many workers; 0: as few as possible; None: not at all."""

    @classmethod
    def take(cls, arguments: list[str]) -> tuple[Switches, list[str]]:
        """The switches among the arguments, and the rest of these. Raises UserError."""
        rehearsals = [argument for argument in arguments if re.match(r"--rehearse(=|$)", argument)]
        rest = [argument for argument in arguments if argument not in ("--dry-run", "--json", *rehearsals)]
        return cls("--dry-run" in arguments, "--json" in arguments, _workers(rehearsals[-1]) if rehearsals else None), rest


Act = Callable[[JobSpec, Switches], int]


def _workers(argument: str) -> int:
    given = argument.partition("=")[2] if "=" in argument else "0"
    if not given.isdigit() or ("=" in argument and not int(given)):
        raise UserError(f"{argument} is not possible: allowed is --rehearse, or --rehearse=4 for a rehearsal with 4 workers.")
    return int(given)


def _run(verb: str, arguments: list[str], act: Act) -> int:
    """Check first, in our words; then let Hydra compose and call. Returns the highest exit status of the jobs."""
    policy = [argument for argument in arguments if argument.startswith(_POLICY)]
    switches, rest = Switches.take(spelled_out([argument for argument in arguments if argument not in policy]))
    if policy:
        from orchestrator.cli.policy import load_policy

        chosen = load_policy(policy, _split(rest)[1])
        act = partial(_with_policy, chosen, act)
    if not any(argument.split("=")[0] in _HYDRA_ONLY for argument in rest):
        overrides, config_dir = _split(rest)
        sweeps = any(argument in _MULTIRUN for argument in rest)
        for combination in combinations(overrides) if sweeps else [overrides]:
            load_job_spec(combination, config_dir)
    statuses: list[int] = []

    def task(config: DictConfig) -> None:
        try:
            spec = job_spec(config)
            statuses.append(_dry_run(spec, switches.json) if switches.dry_run else act(spec, switches))
        except OrchestratorError as error:
            print(f"orchestrator: {error}", file=sys.stderr)
            statuses.append(error.exit_code)

    return _through_hydra(verb, rest, task, statuses)


def _through_hydra(verb: str, arguments: list[str], task: Callable[[DictConfig], None], statuses: list[int]) -> int:
    before = sys.argv
    sys.argv = [f"orchestrator {verb}", *arguments]
    try:
        hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)()
    except SystemExit as leaving:
        # Hydra has said on stderr what was wrong with the command
        return 2 if leaving.code else 0
    finally:
        sys.argv = before
    return max(statuses, default=0)


def _split(arguments: list[str]) -> tuple[list[str], Path | None]:
    """(overrides, the user's own --config-dir)."""
    overrides, config_dir = [], None
    waiting = iter(arguments)
    for argument in waiting:
        if argument in _MULTIRUN:
            continue
        if argument in ("--config-dir", "-cd"):
            config_dir = Path(next(waiting, "."))
        elif argument.startswith("--config-dir="):
            config_dir = Path(argument.partition("=")[2])
        else:
            overrides.append(argument)
    return overrides, config_dir


def _with_policy(chosen: ChosenPolicy, act: Act, spec: JobSpec, switches: Switches) -> int:
    """For a control plane that is started now, and those after it."""
    from orchestrator.control.client import Client
    from orchestrator.control.local import controller_alive

    home = Home.find(spec.cluster.home)
    client = Client(home)
    present = client.policy()
    if controller_alive(home) and present != chosen:
        change = command(f"policy {chosen.name}", home)
        raise ConfigError(
            f"scheduler={chosen.name} is not possible: the control plane of {home.root} runs already, with {present.name}. "
            f"Leave it out, or change it for all jobs: {change}"
        )
    client.set_policy(chosen.name, chosen.settings)
    return act(spec, switches)


def _train(spec: JobSpec, switches: Switches) -> int:
    from orchestrator.cli.follow import follow
    from orchestrator.cli.rehearse import rehearsed
    from orchestrator.client.connection import Local, server
    from orchestrator.control.local import ensure_cluster, stop_cluster

    if server():
        from orchestrator.cli.remote import submit_there

        return submit_there(spec, json=switches.json, rehearse=switches.rehearse, watch=True)
    screen = Screen(beside_json=switches.json)
    home = Home.find(spec.cluster.home)
    screen.say(f"{spec.workload.name}: {spec.training.max_steps} steps on {spec.resources.num_workers} workers; state in {home.root}")
    secrets = secrets_for(spec)
    check_storage(spec, home, secrets)
    spec = with_package(spec, home, secrets, screen.say)
    cluster = ensure_cluster(home, spec.cluster, screen.say)
    client = Local(home)
    try:
        status = rehearsed(client, spec, switches.rehearse, secrets, screen, json=switches.json)
        job = client.submit(spec, secrets) if status == 0 else None
    except (OrchestratorError, KeyboardInterrupt):
        if cluster.started:
            stop_cluster(home)
        raise
    if job is None:
        if cluster.started:
            stop_cluster(home)
        return status
    screen.say(f"job {job.id} is queued")
    status = follow(client, job.id, cluster, screen)
    if switches.json:
        print(as_json(job_to_dict(client.job(job.id))))
    return status


def _submit(spec: JobSpec, switches: Switches) -> int:
    from orchestrator.cli.rehearse import rehearsed
    from orchestrator.client.connection import Local, server
    from orchestrator.control.local import ensure_cluster

    if server():
        from orchestrator.cli.remote import submit_there

        return submit_there(spec, json=switches.json, rehearse=switches.rehearse, watch=False)
    home = Home.find(spec.cluster.home)
    secrets = secrets_for(spec)
    check_storage(spec, home, secrets)
    screen = Screen(beside_json=switches.json)
    spec = with_package(spec, home, secrets, screen.say)
    ensure_cluster(home, spec.cluster, screen.say)
    client = Local(home)
    if status := rehearsed(client, spec, switches.rehearse, secrets, screen, json=switches.json):
        return status
    job = client.submit(spec, secrets)
    if switches.json:
        print(as_json({"id": job.id, "state": job.state.value}))
    else:
        follow, look = (command(f"{verb} {job.id}", home) for verb in ("logs -f", "status"))
        print(f"job {job.id} is queued\n  follow it:  {follow}\n  its state:  {look}")
    return 0


def _dry_run(spec: JobSpec, as_one_line: bool) -> int:
    chosen = layout.layout_for(spec)
    precision = Precision.fp32 if spec.training.precision is Precision.auto else spec.training.precision
    worlds = {
        found.world_size: f"{found.gradient_accumulation_steps} x {found.micro_batch_size} samples per rank and step{_idle(found)}"
        for found in layout.legal(spec)
    }
    shown: dict[str, Any] = {
        "spec": to_dict(spec),
        "legal_workers": worlds,
        "deepspeed": layout.deepspeed_config(spec, chosen, precision),
    }
    if spec.chaos.on:
        shown["chaos"] = [str(fault) for fault in plan(spec, chosen.world_size)]
    print(as_json(shown) + "\n" if as_one_line else f"---\n{OmegaConf.to_yaml(OmegaConf.create(shown))}", end="")
    return 0


def _idle(found: layout.Layout) -> str:
    return f", stages idle for {found.pipeline_idle_share:.0%} of it" if found.pipeline_parallel_size > 1 else ""
