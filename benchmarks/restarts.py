"""Trials of `recovery.py` and `warm_start.py`: a job of two workers is started, and one worker is killed, by us, torchrun and Ray Train.

Trials that are done are kept under `build/` and not run again, so both claims are made from the same ones. Ours, torchrun's and Ray
Train's follow one another in each round.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from record import ROOT, Kept

from harness import Sandbox, kill  # isort: skip  - `record` puts it on the path
from orchestrator.tracking.journal import read_file

FOLDER = f"data.options.root={ROOT / 'orchestrator'}"
"""The peers make their tokens from a seed; ours reads and checks its sources, a folder of about a megabyte."""
SETTINGS = (
    "workload=gpt", "model=gpt-tiny", FOLDER, "training.max_steps=100000", "training.log_interval_steps=1",
    "training.eval_interval_steps=0", "training.eval_samples=24", "training.global_batch_size=24", "training.micro_batch_size=12",
    "resources.num_workers=2",
    "resources.cpus_per_worker=1", "tracking.enabled=false", "cluster.idle_timeout_s=3600", "checkpoint.keep_last=2",
)  # fmt: skip
INTERVALS = (10, 1)
PEERS = ("torchrun", "ray train")
START_LIMIT_S = 180.0
AGAIN_LIMIT_S = 45.0
"""A job that has made no new step by then counts as stuck."""
SETTLE_S = 10.0
"""After a job has ended, before ours is submitted: who serves a cluster has actors stand by again."""
Steps = list[tuple[int, float, int]]
"""(step, seconds since 1970 when it was done, pid of the rank or another number of its life)."""


class Ours:
    name = "ours"

    def __init__(self) -> None:
        self.box = Sandbox()
        self.box.wait_ended(self.box.submit(*SETTINGS, "training.max_steps=30"))  # prepares the data; warms the node up

    def trial(self, interval: int, rng: random.Random) -> dict[str, float]:
        time.sleep(SETTLE_S)
        began = time.time()
        job_id = self.box.submit(*SETTINGS, f"checkpoint.interval_steps={interval}")
        queued_s = self.box.job(job_id).queued_s
        found = timed(lambda: self._steps(job_id), lambda: sorted(self.box.ranks(), key=lambda rank: rank.pid)[1].pid, rng)
        self.box.run("cancel", job_id)
        self.box.wait_ended(job_id)
        return {**found, "start_s": found["first_s"] - queued_s, "command_s": found["first_s"] - began}

    def _steps(self, job_id: str) -> Steps:
        path = self.box.home.node(job_id) / "journal.jsonl"
        found: Steps = []
        life = 0
        for record in read_file(path) if path.exists() else ():
            life += record["kind"] == "rewind"
            if record["kind"] == "metrics":
                found.append((record["step"], record["time_s"], life))
        return found

    def close(self) -> None:
        self.box.close()


class Torchrun:
    name = "torchrun"

    def trial(self, interval: int, rng: random.Random) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="restarts-") as folder:
            options = ("--standalone", "--nproc-per-node=2", "--max-restarts=3", "--monitor-interval=0.1")
            program = str(Path(__file__).with_name("restart_peer.py"))
            command = [sys.executable, "-m", "torch.distributed.run", *options, program, folder, str(interval)]
            began = time.time()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            try:
                found = timed(lambda: steps_in(folder, 0), lambda: steps_in(folder, 1)[-1][2], rng)
            finally:
                end(process)
        return {**found, "start_s": found["first_s"] - began}

    def close(self) -> None:
        return


class RayTrain:
    name = "ray train"

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rt-")
        environment = {**os.environ, "RAY_TRAIN_V2_ENABLED": "1", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        environment.pop("RAY_ADDRESS", None)
        self._command = [sys.executable, str(Path(__file__).with_name("restart_peer.py")), "ray"]
        self._environment = environment
        self._number = 0
        self._process = self._start()

    def trial(self, interval: int, rng: random.Random) -> dict[str, float]:
        self._number += 1
        folder = Path(self._folder.name) / f"run-{self._number}"
        folder.mkdir()
        began = time.time()
        assert self._process.stdin is not None
        self._process.stdin.write(f"{interval} {folder}\n")
        self._process.stdin.flush()
        found = timed(lambda: steps_in(str(folder), 0), lambda: steps_in(str(folder), 1)[-1][2], rng)
        end(self._process)  # a running trainer is ended with its cluster; the next trial's is warm before it begins
        self._process = self._start()
        return {**found, "start_s": found["first_s"] - began}

    def close(self) -> None:
        end(self._process)
        self._folder.cleanup()

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [*self._command, f"{self._folder.name}/{self._number}"], env=self._environment, stdin=pipe, stdout=pipe,
            stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert any(line.strip() == "ready" for line in process.stdout), "Ray did not start"
        return process


def timed(steps: Callable[[], Steps], victim: Callable[[], int], rng: random.Random) -> dict[str, float]:
    """Wait for the first step, kill a rank after some more, and wait for a step that had not been made before."""
    first_s = wait(steps)[0][1]
    goal = rng.randrange(30, 60)
    wait(lambda: [done for done in steps() if done[0] >= goal])
    time.sleep(rng.random() * 0.05)
    pid, life, killed_s = victim(), steps()[-1][2], time.time()
    os.kill(pid, signal.SIGKILL)
    made = [at for _, at, of in steps() if of == life]
    calm = {"first_s": first_s, "step_s": (made[-1] - made[0]) / (len(made) - 1)}
    try:
        again_step, again_s, again = wait(lambda: [done for done in steps() if done[2] != life], AGAIN_LIMIT_S)[0]
        before = max(step for step, _, of in steps() if of == life)
        new_s = wait(lambda: [at for step, at, of in steps() if of == again and step > before], AGAIN_LIMIT_S)[0]
    except TimeoutError:
        return {**calm, "first_step_s": AGAIN_LIMIT_S, "new_step_s": AGAIN_LIMIT_S, "lost": 0, "stuck": 1}
    return {**calm, "first_step_s": again_s - killed_s, "new_step_s": new_s - killed_s, "lost": before - again_step + 1, "stuck": 0}


def wait(condition: Callable[[], Any], limit_s: float = START_LIMIT_S) -> Any:
    """What it returns once it is true. Raises TimeoutError."""
    limit = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > limit:
            raise TimeoutError(f"nothing happened within {limit_s:.0f} s")
        time.sleep(0.01)
    return value


def steps_in(folder: str, rank: int) -> Steps:
    path = Path(folder) / f"steps-{rank}"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(step), float(at), int(pid)) for step, at, pid in (line.split() for line in lines if line.count(" ") == 2)]


def end(process: subprocess.Popen[Any]) -> None:
    """And all that it has started."""
    living = _family(process.pid)
    for member in living:
        kill(member)
    process.wait()
    psutil.wait_procs(living, timeout=10)


def _family(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def rounds(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` rounds, each a row by name of who restarts; those of an earlier call with this seed are read."""
    kept = Kept("restarts", seed)
    rows = kept.rows
    if len(rows) >= count:
        return rows[:count]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    systems: list[Ours | Torchrun | RayTrain] = [Ours(), Torchrun(), RayTrain()]
    try:
        for number in range(len(rows), count):
            rng = random.Random(f"{seed} {number}")
            row = {f"{system.name} {interval}": system.trial(interval, rng) for system in systems for interval in intervals(system, number)}
            kept.add(row)
            shown = {name: (round(found["start_s"], 2), round(found["new_step_s"], 2), found["lost"]) for name, found in row.items()}
            print(f"{number + 1:3d}/{count}  {shown}", flush=True)
    finally:
        for system in systems:
            system.close()
    return rows


def intervals(system: Ours | Torchrun | RayTrain, number: int) -> tuple[int, ...]:
    """Ours at both, the peers at one in turn: it changes little for them."""
    return INTERVALS if isinstance(system, Ours) else (INTERVALS[number % 2],)
