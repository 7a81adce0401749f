"""Claim: jobs of four tenants on 8 nodes of 8 GPUs all run to the end, once, whatever becomes of the controller; quotas are kept.

    make campaign NAME=control N=1000 SEED=1 ARGS="--kills 100"

The cluster is Ray's own: 8 raylets on this machine that say they have 8 GPUs each. The jobs are real (supervisor, agents, uploaders, one
process for each rank) but for their ranks, which train a number instead of a network. They come in bursts; gangs of up to 16, three
priorities, some elastic, some after others. The controller is killed with SIGKILL at random moments and started again. At the end: every
job has succeeded once and has the calm run's history, none was restarted or queued again but for the scheduler's orders, no placement
group and no supervisor is left, every start is in the scheduler's log, and every plan there has all of the scheduler's properties and
comes out the same when it is made again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from record import ROOT, publish, table

sys.path.insert(0, str(ROOT))
from harness import Sandbox, kill  # isort: skip  - `record` puts it on the path
from scheduling.lives import returned_evictions  # isort: skip
from scheduling.properties import PROPERTIES  # isort: skip
from scheduling.strategies import Moment  # isort: skip
from supervision_box import ENTRY, TESTS, calm_history  # isort: skip
from orchestrator.control.client import Client
from orchestrator.control.environment import remote_environment
from orchestrator.control.keeper import head_command
from orchestrator.control.planning.planlog import read_log
from orchestrator.control.planning.replay import replay
from orchestrator.control.records.users import Role, User
from orchestrator.control.scheduler import Plan, plan_ahead
from orchestrator.events import EventKind
from orchestrator.job import Job, JobState
from orchestrator.paths import Home, JobKeys
from orchestrator.ports import free_port
from orchestrator.spec import (
    CheckpointSpec,
    ClusterSpec,
    DataSpec,
    JobSpec,
    ModelSpec,
    RecoverySpec,
    ResourcesSpec,
    SchedulingSpec,
    StorageSpec,
    TrackingSpec,
    TrainingSpec,
    WorkloadSpec,
)  # fmt: skip
from orchestrator.storage import ObjectStore, open_store

NODES, GPUS, CPUS = 8, 8, 16
GIVEN_BACK_S = 20.0
"""After the last job's end."""
POLICY = {
    "mode": "preemptive", "min_run_s": 30, "gain_factor": 0, "levels": [200, 2_000], "round_s": 5, "resize_interval_s": 60,
    "tenants": {"a": {"weight": 2}, "b": {"weight": 1}, "c": {"jobs_per_user": 6}, "d": {"quota": 16}},
}  # fmt: skip


class Cluster:
    """All that is started marks its processes by the sandbox's home, and is ended by pid."""

    def __init__(self, nodes: int) -> None:
        self.box, self.address = Sandbox(), f"127.0.0.1:{free_port()}"
        self.home = Home(self.box.home.root)
        self.home.root.mkdir(parents=True)
        environment = {**self.box.environment, "PYTHONPATH": str(TESTS), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment = {**environment, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": self.address, "RAY_USAGE_STATS_ENABLED": "0"})
        self.started = [self._spawn(head_command(self.address, f"{self.box.root}/r0", CPUS, GPUS), "node0")]
        from orchestrator.control.nodes.cluster import wait_for_ray

        wait_for_ray(self.address, limit_s=180)
        for number in range(1, nodes):
            self.started.append(self._spawn(self._node_command(number), f"node{number}"))
        import ray

        ray.init(self.address, namespace="orchestrator", log_to_driver=False, logging_level="ERROR")
        self.box.wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == nodes, "all nodes", timeout_s=600)
        self.controller: subprocess.Popen[bytes] | None = None

    def _node_command(self, number: int) -> list[str]:
        return [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={self.address}", "--node-ip-address=127.0.0.1",
            f"--temp-dir={self.box.root}/r{number}", f"--num-cpus={CPUS}", f"--num-gpus={GPUS}", "--object-store-memory=80000000",
            "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0", "--include-log-monitor=false",
            "--disable-usage-stats",
        ]  # fmt: skip

    def _spawn(self, command: list[str], name: str, **more: str) -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in {**self.environment, **more}.items() if key != "RAY_ADDRESS" or more}
        with (self.box.root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)

    def look_after_controller(self) -> None:
        if self.controller is None or self.controller.poll() is not None:
            command = [sys.executable, "-m", "orchestrator.control.serve", "--home", str(self.home.root), "--address", self.address]
            command += ["--rank-entry", ENTRY, "--wait-s", "60"]
            self.controller = self._spawn(command, "controller", **remote_environment(self.home, self.address))

    def kill_controller(self) -> None:
        if self.controller is not None:
            self.controller.kill()
            self.controller.wait()

    def left_behind(self) -> list[str]:
        """Placement groups and supervisors of jobs."""
        import ray
        from ray.util.placement_group import placement_group_table

        groups = [row["name"] for row in placement_group_table().values() if row["state"] != "REMOVED" and row["name"].startswith("job:")]
        actors = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        return groups + [name for name in actors if name.startswith(("supervisor:", "agent:"))]

    def wait_given_back(self) -> None:
        """What the last job held; what stays for longer is a finding."""
        limit_s = time.monotonic() + GIVEN_BACK_S
        while self.left_behind() and time.monotonic() < limit_s:
            time.sleep(0.1)

    def close(self) -> None:
        import ray

        ray.shutdown()  # a driver whose cluster is gone is ended by Ray
        self.kill_controller()
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        for process in self.box.processes():
            kill(process)
        self.box.close()


def spec_of(rng: random.Random, url: str, known: list[str]) -> tuple[JobSpec, str]:
    """(a job, its user)."""
    workers = rng.choice((1, 1, 1, 2, 2, 4, 8, 16)) if rng.random() < 0.9 else 4
    tenant = rng.choice("abcd")
    sleeps = rng.random() < 0.3
    steps, step_s = (20, rng.choice((0.2, 0.5))) if sleeps else (rng.randrange(20, 200, 10), 0.01)
    least = workers // 2 if rng.random() < 0.2 else 0
    after = (rng.choice(known),) if known and rng.random() < 0.1 else ()
    scheduling = SchedulingSpec(tenant=tenant, priority=rng.choice((0, 0, 0, 1, 2)), after=after)
    spec = JobSpec(
        workload=WorkloadSpec(name="double", entrypoint="double:Double", options={"step_s": step_s}), model=ModelSpec(name="m"),
        data=DataSpec(name="d"), training=TrainingSpec(max_steps=steps, global_batch_size=16, micro_batch_size=1),
        resources=ResourcesSpec(num_workers=workers, min_workers=least, gpus_per_worker=1, cpus_per_worker=1), scheduling=scheduling,
        checkpoint=CheckpointSpec(interval_steps=10, peer_copy=False), storage=StorageSpec(url=url), tracking=TrackingSpec(enabled=False),
        recovery=RecoverySpec(backoff_s=0.05, preemption_grace_s=10.0), cluster=ClusterSpec(),
    )  # fmt: skip
    return spec, f"{tenant}-{rng.randrange(3)}"


def run(cluster: Cluster, n: int, kills: int, seed: int, limit_s: float) -> dict[str, Any]:
    rng, client, url = random.Random(seed), cluster.box.client, (cluster.box.root / "store").as_uri()
    client.set_policy("campaign", POLICY)
    cluster.look_after_controller()
    cluster.box.wait_until(lambda: client.nodes()[0].nodes, "a controller that sees the nodes", timeout_s=300)
    ids: list[str] = []
    began, next_kill, killed = time.monotonic(), time.monotonic() + 5, 0
    while time.monotonic() - began < limit_s:
        if len(ids) < n and rng.random() < 0.5:
            for _ in range(min(n - len(ids), rng.randrange(1, 9))):
                spec, user = spec_of(rng, url, ids)
                ids.append(client.acting_for(User(name=user, tenant=spec.scheduling.tenant, role=Role.USER)).submit(spec, {}).id)
        ended = sum(job.state.terminal for job in client.jobs())
        if killed < kills and time.monotonic() > next_kill:
            cluster.kill_controller()
            killed, next_kill = killed + 1, time.monotonic() + rng.uniform(5, 25)
        cluster.look_after_controller()
        print(f"{time.monotonic() - began:6.0f} s: {len(ids)} submitted, {ended} ended, {killed} kills", flush=True)
        if len(ids) == n and ended == n and killed == kills:
            break
        time.sleep(2.0)
    return {"ids": ids, "killed": killed, "seconds": time.monotonic() - began}


def findings(root: Path, done: dict[str, Any]) -> tuple[Counter[str], dict[str, Any]]:
    """What is amiss, by kind; figures. `root`: where home and store of the run are; `done`: what `run` returned."""
    home, store, wrong = Home(root / "home"), open_store(StorageSpec(url=(root / "store").absolute().as_uri())), Counter[str]()
    client, planned = Client(home), of_the_log(home, wrong)
    jobs = [client.job(job_id) for job_id in done["ids"]]
    for job in jobs:
        wrong["not succeeded"] += job.state is not JobState.SUCCEEDED
        if job.state is JobState.SUCCEEDED:
            wrong["another history"] += not _is_calm(store, job)
        events = [event for _, event in client.events(job.id)]
        kinds = Counter(event.kind for event in events)
        wrong["restarted"] += job.progress.restarts
        wrong["queued again without an order"] += kinds[EventKind.SUPERVISOR_LOST]
        wrong["admitted, and not in the log"] += kinds[EventKind.ADMITTED] > planned[job.id]
        if sum(event.kind is EventKind.ENDED and event.message.startswith("trained") for event in events) != 1:
            wrong["completed not once"] += 1
            print(job.id, *(f"  {event.time_s:.3f} {event.kind.name} {event.message}" for event in events), sep="\n")
    wrong["left behind"] += len(done["left_behind"])
    again = replay(home.plans)
    wrong["came out otherwise"] += len(again.differing)
    preempted = sum(job.service.preemptions for job in jobs)
    resized = sum(job.service.resized_s is not None for job in jobs)
    return +wrong, {"plans": again.plans, "preemptions": preempted, "resized jobs": resized}


def of_the_log(home: Home, wrong: Counter[str]) -> Counter[str]:
    """Add to `wrong` what is amiss with the plans. Returns how often each job was to start, or to go on elsewhere."""
    starts, began = Counter[str](), time.monotonic()
    evicting: list[tuple[Moment, Plan]] = []
    for count, recorded in enumerate(read_log(home.plans), 1):
        inputs = recorded.inputs
        moment = Moment(
            cluster=inputs.cluster, queue=inputs.queue, running=inputs.running, usage=inputs.usage, now=recorded.now, policy=inputs.policy,
            planner=plan_ahead,
        )  # fmt: skip
        decided = moment.plan()
        starts.update([*(start.job_id for start in decided.starts), *(order.job_id for order in decided.resizes)])
        if decided.preempts:
            evicting.append((moment, decided))
        for check in PROPERTIES:
            for amiss in check(moment, decided):
                wrong[check.__name__] += 1
                print(f"plan {count}: {check.__name__}: {amiss[:1000]}", flush=True)
        if count % 100 == 0:
            print(f"{count} plans checked in {time.monotonic() - began:.0f} s", flush=True)
    for amiss in returned_evictions(evicting):
        wrong["eviction returned"] += 1
        print(amiss, flush=True)
    return starts


def _is_calm(store: ObjectStore, job: Job) -> bool:
    rows = json.loads(store.get(JobKeys(job.id).artifact("history.json")))["history"]
    return [(row["step"], row["loss"]) for row in rows] == calm_history(job.spec.training.max_steps)


def _sockets(folder: str, names: list[str]) -> list[str]:
    """Those of agents that were killed: they cannot be copied."""
    return [name for name in names if (Path(folder) / name).is_socket()]


def _lived(asked: argparse.Namespace) -> tuple[dict[str, Any], Counter[str], dict[str, Any]]:
    """(what `run` returned, what `findings` did)."""
    cluster = Cluster(asked.nodes)
    root = cluster.box.root
    try:
        done = run(cluster, asked.n, asked.kills, asked.seed, asked.limit_s)
        cluster.wait_given_back()
        done |= {"left_behind": cluster.left_behind(), "nodes": asked.nodes}
        if asked.keep:
            for name in ("home", "store"):
                shutil.copytree(root / name, asked.keep / name, ignore=_sockets)
            (asked.keep / "run.json").write_text(json.dumps(done))
        wrong, figures = findings(root, done)
        if wrong:
            print(cluster.box.describe()[-6000:], (root / "controller.log").read_text()[-3000:])
    finally:
        cluster.close()
    return done, wrong, figures


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--limit-s", type=float, default=7200.0, help="after so long it has failed")
    parser.add_argument("--keep", type=Path, help="a new folder for the record of the run: its home and its store")
    parser.add_argument("--check", type=Path, help="nothing is run: such a record is judged again")
    asked = parser.parse_args()
    if asked.check:
        done = json.loads((asked.check / "run.json").read_text())
        wrong, figures = findings(asked.check, done)
    else:
        done, wrong, figures = _lived(asked)
    figures |= {"jobs": len(done["ids"]), "kills": done["killed"], "nodes": done["nodes"], "seconds": round(done["seconds"])}
    print(dict(wrong), figures)
    return publish(
        "campaign_control" if done["nodes"] == NODES else f"campaign_control_{done['nodes']}_nodes",
        "Jobs of four tenants all run to the end, once, whatever becomes of the controller",
        ours=sum(wrong.values()), bar=0, holds=not wrong and figures["jobs"] == asked.n, unit="findings", seed=asked.seed, **figures,
        rows=table(("", ""), [*((name, value) for name, value in figures.items()), *((name, value) for name, value in wrong.items())]),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
