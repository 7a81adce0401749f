"""The verb `simulate`: what a trace of jobs would come to on a cluster, under one policy of the scheduler or several."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from orchestrator.cli.parser import parser_for
from orchestrator.cli.screen import Bar
from orchestrator.cli.simulated import shown, what
from orchestrator.config import SIMULATION, conf_dir, groups, load_simulation
from orchestrator.control.scheduler import Policy, plan
from orchestrator.control.scheduler.settings import check_tenants
from orchestrator.errors import ConfigError, UserError, nearest
from orchestrator.paths import Home
from orchestrator.simulation import metrics
from orchestrator.simulation.baselines import BASELINES, baseline
from orchestrator.simulation.cluster import Cluster, demand_of, shapes_by_node
from orchestrator.simulation.engine import simulate
from orchestrator.simulation.model import Outcome, Planner, TraceJob, World
from orchestrator.simulation.settings import SimulationSettings
from orchestrator.simulation.trace import OPTIONAL, REQUIRED, Why, read_trace

_ABOUT = """\
What the jobs of a trace would come to on a simulated cluster. The decisions are those of the scheduler itself, only the clock is not.

  orchestrator simulate TRACE.csv cluster.nodes=72 cluster.gpus_per_node=8 scheduler=preemptive
  orchestrator simulate TRACE.csv cluster.nodes=72 --compare fifo,batch,preemptive --plots FOLDER
  orchestrator simulate --from-log --compare fifo,preemptive"""


@dataclass(frozen=True)
class Run:
    """A policy to simulate."""

    name: str
    settings: SimulationSettings
    """Of a baseline only the cluster and what happens on it."""

    def outcome(self, jobs: tuple[TraceJob, ...], world: World) -> Outcome:
        ours: tuple[Planner, Policy] = plan, self.settings.scheduler
        planner, policy = baseline(self.name, jobs, world.preemption_loss_s) if self.name in BASELINES else ours
        with Bar(self.name, len(jobs), amount=_jobs) as bar:
            return simulate(jobs, world, planner, policy, name=self.name, progress=lambda ended, total: bar.add(1))


def simulate_(arguments: list[str]) -> int:
    asked = _arguments(arguments)
    try:
        return _simulate(asked)
    except KeyboardInterrupt:
        print("orchestrator: stopped before the end: there is no table, and no picture", file=sys.stderr)
        return 130


def _simulate(asked: argparse.Namespace) -> int:
    runs = _runs(asked)
    jobs, world = _from_file(asked, runs) if asked.from_log is None else _from_log(asked, runs)
    for run in runs:
        check_tenants(run.settings.scheduler, (job.tenant for job in jobs))
    if asked.plots:
        _make_folder(Path(asked.plots))
    say = (lambda text: None) if asked.json else print
    say(what(jobs, world))
    outcomes = [run.outcome(jobs, world) for run in runs]
    prices = {node: shape.cost_per_gpu_hour for node, shape in shapes_by_node(world).items()}
    tables = {outcome.policy: metrics.table(outcome, prices) for outcome in outcomes}
    say(shown(tables))
    if asked.plots:
        from orchestrator.simulation.report import write_plots

        say("\n".join(str(path) for path in write_plots(outcomes, Path(asked.plots))))
    if asked.json:
        print(json.dumps(tables if asked.compare else tables[runs[0].name]))
    return 0


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = parser_for("simulate", _ABOUT)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _settings_text()
    parser.add_argument("words", nargs="*", metavar="TRACE.csv key=value", help="the trace, and settings (see below)")
    parser.add_argument(
        "--from-log", nargs="?", const="", metavar="HOME", help="instead of a trace: the jobs of this machine that have ended"
    )
    parser.add_argument("--compare", default="", metavar="NAMES", help="several policies side by side: fifo,batch,preemptive")
    parser.add_argument("--plots", default="", metavar="FOLDER", help="write pictures: utilisation, waits, queue, big jobs")
    parser.add_argument("--config-dir", default="", metavar="FOLDER", help="with policies of your own: FOLDER/scheduler/NAME.yaml")
    parser.add_argument("--json", action="store_true", help="the table as one JSON object; with --compare: one for each policy, by name")
    asked = parser.parse_intermixed_args(arguments)
    if asked.from_log and "=" in asked.from_log:
        asked.words, asked.from_log = [asked.from_log, *asked.words], ""
    asked.trace = next((word for word in asked.words if "=" not in word or Path(word).exists()), "")
    asked.words = [word for word in asked.words if word != asked.trace]
    if bool(asked.trace) == (asked.from_log is not None):
        raise UserError("give either a trace (TRACE.csv) or --from-log, for the jobs of this machine; `orchestrator simulate --help`")
    return asked


def _settings_text() -> str:
    """Of the help: what may be set, as the shipped file has it."""
    text = (conf_dir() / "simulate.yaml").read_text()
    return (
        f"columns of a trace: {', '.join(REQUIRED)}; optional {', '.join(OPTIONAL)}\n"
        f"policies (scheduler=NAME, --compare): {', '.join(groups(SIMULATION)['scheduler'])}; settings of one: scheduler.KEY=VALUE,\n"
        "  scheduler.tenants.NAME.weight=2, scheduler.tenants.NAME.quota=64\n"
        f"to compare with: {', '.join(BASELINES)}\n\nsettings and what they are if nothing is said:\n\n{text[text.index('cluster:') :]}"
    )


def _runs(asked: argparse.Namespace) -> list[Run]:
    config_dir = Path(asked.config_dir) if asked.config_dir else None
    chosen = [word.removeprefix("scheduler=") for word in asked.words if word.startswith("scheduler=")]
    rest = [word for word in asked.words if not word.startswith("scheduler=")]
    if chosen and asked.compare:
        raise UserError(f"scheduler={chosen[-1]} and --compare {asked.compare} exclude each other: name all policies in --compare.")
    names = list(dict.fromkeys(asked.compare.split(","))) if asked.compare else chosen[-1:]
    known = [*groups(SIMULATION, config_dir)["scheduler"], *BASELINES]
    for name in names:
        if name not in known:
            raise ConfigError(f"scheduler={name} is not possible: allowed is {', '.join(known)}.{nearest(name, known)}")
    if not names:
        settings = load_simulation(rest, config_dir)
        return [Run(settings.scheduler.mode, settings)]
    choices = {name: [] if name in BASELINES else [f"scheduler={name}"] for name in names}
    return [Run(name, load_simulation([*rest, *choice], config_dir)) for name, choice in choices.items()]


def _from_file(asked: argparse.Namespace, runs: list[Run]) -> tuple[tuple[TraceJob, ...], World]:
    settings = runs[0].settings
    shapes = settings.cluster.all_shapes
    if not shapes:
        raise ConfigError("cluster.nodes=0 is not possible: say how many nodes the cluster has, for example cluster.nodes=72.")
    world = settings.world(shapes)
    return read_trace(Path(asked.trace), _why_never(world, runs)), world


def _from_log(asked: argparse.Namespace, runs: list[Run]) -> tuple[tuple[TraceJob, ...], World]:
    from orchestrator.control.client import Client
    from orchestrator.simulation.log_trace import log_trace, shapes_of

    home = Home.find(asked.from_log or asked.home)
    if not home.jobs_db.exists():
        raise UserError(f"there are no jobs in {home.root}; `orchestrator train` starts one")
    client = Client(home)
    found = log_trace(client.jobs())
    if not found.jobs:
        raise UserError(f"no job in {home.root} has run and ended: {found.live} live, {found.never_ran} ended before they ran")
    settings = runs[0].settings
    shapes = settings.cluster.all_shapes or shapes_of(client.nodes()[0])
    if not shapes:
        raise ConfigError(
            "cluster.nodes=0 is not possible: no GPUs of that cluster are known. Give cluster.nodes; a worker on CPUs counts as a GPU."
        )
    world = settings.world(shapes)
    why_never = _why_never(world, runs)
    for job in found.jobs:
        if why := why_never(job):
            raise ConfigError(f"job {job.id} can never run on {job.gpus} GPUs: {why}.")
    if not asked.json:
        print(f"{home.root}: left out are {_jobs(found.live)} that have not ended and {_jobs(found.never_ran)} that never ran")
    return found.jobs, world


def _why_never(world: World, runs: list[Run]) -> Why:
    """Of a job that the cluster, or its tenant's quota under one of the policies, can never hold."""
    cluster = Cluster(world)
    has = f"the cluster has {cluster.gpus} GPUs, {max(shape.gpus_per_node for shape in world.shapes)} at most on a node"
    fits = cache(lambda gpus: cluster.could_hold(demand_of(gpus, world)))
    quotas = [(name, tenant.quota) for run in runs for name, tenant in run.settings.scheduler.tenants.items() if tenant.quota]
    least = dict(sorted(quotas, key=lambda pair: pair[1], reverse=True))  # of several of one tenant the last one stays

    def why(job: TraceJob) -> str | None:
        if not fits(job.gpus):
            return has
        quota = least.get(job.tenant)
        return f"scheduler.tenants.{job.tenant}.quota is {quota}" if quota and job.gpus > quota else None

    return why


def _make_folder(folder: Path) -> None:
    """Before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--plots={folder} is not possible: {error.strerror or error}.") from error


def _jobs(count: float) -> str:
    return f"{count:,.0f} job{'' if round(count) == 1 else 's'}"
