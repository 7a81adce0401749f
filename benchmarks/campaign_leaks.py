"""Claim: whatever is killed at whatever moment of a job, ten seconds after the job's end nothing of it is left.

    make campaign NAME=leaks N=200 SEED=1

A Ray cluster of two nodes that others started; each job has a worker on each. One process of it (a rank, an agent, the second node's
raylet, the supervisor) gets SIGKILL while the job starts, trains, saves, ends or is being cancelled; a lost node is replaced by a new one.
Ten seconds after the job has ended what is left of it is counted: placement groups, actors, processes, ports that listen, names in shared
memory. Trials that are done are kept under `build/` and not run again.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import psutil
from record import ROOT, Kept, options, publish, table

from harness import TINY, Sandbox  # isort: skip  - `record` puts it on the path
from campaign_kills import wait_for_save  # isort: skip
from orchestrator.control.environment import remote_environment
from orchestrator.ports import free_port
from orchestrator.supervision.agent import SHARED_MEMORY
from orchestrator.supervision.standby import PREFIX

VICTIMS = ("rank", "agent", "raylet", "supervisor")
MOMENTS = ("starting", "training", "saving", "ending", "cancelling")
STEPS = 150
SETTINGS = (*TINY, f"training.max_steps={STEPS}", "training.log_interval_steps=1", "resources.max_workers_per_node=1")
LATER_S = 10.0
OF_A_JOB = ("ray::Agent", "ray::Supervisor", "orchestrator.supervision.uploader", "orchestrator.tracking.writer")
OF_THE_CLUSTER = (
    "orchestrator.control.serve", "orchestrator.runtime.warm", "/ray/", "ray.scripts.scripts", "ray::IDLE", "ray::DashboardAgent",
    "ray::RuntimeEnvAgent", "cluster/local.sh",
)  # fmt: skip
KINDS = ("placement groups", "actors", "processes", "ports", "shared memory")


class Cluster:
    """A head and a second node, whose processes bear the mark of the sandbox's home."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.address = f"127.0.0.1:{free_port()}"
        os.environ["RAY_AUTH_MODE"] = "disabled"
        self._environment = {**box.environment, "RAY_AUTH_MODE": "disabled", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "tests")}
        script = ROOT / "cluster" / "local.sh"
        self._head = subprocess.Popen(
            [script, "1", "2", self.address.rpartition(":")[2]], env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        assert self._head.stdout is not None
        first = self._head.stdout.readline()
        assert "ready: 1 nodes" in first, first + self._head.communicate(timeout=60)[0]
        with_token = remote_environment(box.home, self.address)
        os.environ.update(with_token)
        self._environment.update(with_token)
        import ray

        ray.init(self.address, namespace="leaks", log_to_driver=False, logging_level="ERROR")
        self._number = 0
        self.node = self._start_node()

    def raylet(self) -> psutil.Process:
        """Of the second node."""
        return next(child for child in psutil.Process(self.node.pid).children(recursive=True) if child.name() == "raylet")

    def replace_node(self) -> None:
        """The second one was lost."""
        self.node.wait(60)
        self.node = self._start_node()

    def close(self) -> None:
        import ray

        ray.shutdown()
        for process in (self.node, self._head):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()

    def _start_node(self) -> subprocess.Popen[bytes]:
        import ray

        self._number += 1
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={self.address}", "--node-ip-address=127.0.0.1",
            f"--temp-dir={self.box.root}/n{self._number}", "--num-cpus=2", "--object-store-memory=80000000", "--min-worker-port=0",
            "--max-worker-port=0", "--dashboard-agent-listen-port=0", "--include-log-monitor=false", "--disable-usage-stats",
        ]  # fmt: skip
        with (self.box.root / f"node-{self._number}.log").open("wb") as log:
            started = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log, start_new_session=True)
        limit = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) != 2:
            assert time.monotonic() < limit, f"the second node does not come\n{self.box.describe()}"
            time.sleep(0.1)
        return started


class Campaign:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.box = Sandbox()
        self.cluster = Cluster(self.box)

    def trial(self, number: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed} {number}")
        kind, moment = VICTIMS[number % len(VICTIMS)], rng.choice(MOMENTS)
        job_id = self.box.submit(*SETTINGS, f"cluster.address={self.cluster.address}")
        victim = self._victim_at(moment, kind, job_id, rng)
        struck = victim is not None and _kill(victim)
        if kind == "raylet":
            self.cluster.replace_node()
        job = self.box.wait_ended(job_id, 300)
        time.sleep(LATER_S)
        left = self.left(job_id)
        return {
            "number": number, "job": job_id, "killed": kind, "moment": moment, "struck": struck, "state": job.state.value, "run": job.run,
            "restarts": job.progress.restarts, "left": {what: found for what, found in left.items() if found},
        }  # fmt: skip

    def _victim_at(self, moment: str, kind: str, job_id: str, rng: random.Random) -> psutil.Process | None:
        """Wait for the moment. None: the job has gone by before there was a victim."""
        if moment == "training":
            self.box.wait_step(job_id, rng.randrange(1, STEPS - 20))
        elif moment == "cancelling":
            self.box.wait_step(job_id, rng.randrange(1, STEPS - 20))
            self.box.client.request_stop(job_id, rng.choice(("drain", "now")))
            time.sleep(0.3 * rng.random())
        elif moment == "saving":
            wait_for_save(self.box, job_id)
        elif moment == "ending":
            self.box.wait_step(job_id, STEPS)
            time.sleep(0.2 * rng.random())

        def seen() -> list[psutil.Process] | str:
            if kind == "raylet":
                started = moment != "starting" or self.box.victims("agent") or self.box.job(job_id).state.terminal
                return [self.cluster.raylet()] if started else []
            return self.box.victims(kind) or ("gone" if self.box.job(job_id).state.terminal else [])

        found = self.box.wait_until(seen, f"a {kind}")
        return None if found == "gone" else rng.choice(found)

    def left(self, job_id: str) -> dict[str, list[str]]:
        """What is there and should not be, by kind, for people."""
        import ray
        from ray._private.state import actors
        from ray.util.placement_group import placement_group_table

        groups = [row["name"] for row in placement_group_table().values() if row["state"] != "REMOVED"]
        rows = [row for row in actors().values() if row["State"] != "DEAD"]
        standby = _standing_by(rows)
        living = [f"{row['ActorClassName']} {row['Name']}" for row in rows if row not in standby]
        free = {row["Name"] for row in standby}
        named = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if actor["name"] not in free]
        processes, ports, forked, idle = [], [], self.box.ranks(), {row["Pid"] for row in standby}
        warm = [process for process in self.box.having("orchestrator.runtime.warm") if process not in forked]
        for process in [*self.box.processes(), *forked]:
            command = _command(process)
            if not command or process.pid in idle:
                continue
            is_of_cluster = any(word in command for word in OF_THE_CLUSTER) and not any(word in command for word in OF_A_JOB)
            if process in forked or process in warm[1:] or not is_of_cluster:
                processes.append(f"{process.pid} {command[:100]}")
                ports += [f"{port} of {process.pid}" for port in _listening(process)]
        memory = [path.name for path in SHARED_MEMORY.glob(f"orchestrator-{job_id}-*")]
        return dict(zip(KINDS, (groups, sorted({*living, *named}), sorted(set(processes)), ports, memory), strict=True))


def _standing_by(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the actors, those that wait for the next job: one for each class and node, whatever there is more of has been left."""
    first = {(row["ActorClassName"], row["Address"]["NodeID"]): row for row in rows if row["Name"].startswith(PREFIX)}
    return list(first.values())


def _kill(process: psutil.Process) -> bool:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def _command(process: psutil.Process) -> str:
    """Empty for one that is gone or only waits to be reaped."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _listening(process: psutil.Process) -> list[int]:
    try:
        return [found.laddr.port for found in process.net_connections("inet") if found.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []


def main() -> int:
    asked = options(200)
    kept = Kept("campaign-leaks", asked.seed)
    rows = kept.rows
    campaign = Campaign(asked.seed)
    try:
        for number in range(len(rows), asked.n):
            kept.add(campaign.trial(number))
            print(f"{number + 1:3d}/{asked.n}  {rows[-1]}", flush=True)
    finally:
        campaign.cluster.close()
        campaign.box.close()
    return _publish(rows[: asked.n], asked.n, asked.seed)


def _publish(rows: list[dict[str, Any]], asked: int, seed: int) -> int:
    cells = Counter((row["killed"], row["moment"]) for row in rows if row["struck"])
    leaks = Counter(kind for row in rows for kind in row["left"])
    lines = [(kind, *(cells[kind, moment] for moment in MOMENTS)) for kind in VICTIMS]
    return publish(
        "leaks", "Ten seconds after the end of a job of which something was killed nothing of it is left",
        ours=leaks.total(), bar=0, holds=leaks.total() == 0 and cells.total() >= 0.9 * asked, seed=seed, n=cells.total(),
        left={kind: leaks[kind] for kind in KINDS},
        rows=[
            *table(("killed while it was", *MOMENTS), lines), "",
            *table(("left behind", "jobs"), [(kind, leaks[kind]) for kind in KINDS]), "",
            f"{len(rows)} jobs; of {len(rows) - cells.total()} the victim was gone when its moment came.",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
