"""A rank without torch, for tests of supervision: it trains a number, stages it for the uploader, and fails on order.

`workload.options` is its script: `step_s`, and `faults`, a list of {"rank", "step", "how", "epochs"}: in its first `epochs` epochs
the rank does `how` at that step: `raise`, `exit`, `silent`, `segfault`, `echo`, `bad_config`, `hold` (wait to be killed), `wait` (until the
file `until` is there), `come` (make the file `until`). In the name of a file `{epoch}` stands for the epoch's number.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from functools import partial
from hashlib import sha256
from pathlib import Path

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.slab import ALIGN_BYTES, Row, Slab, SlabState, Staged, slab_path
from orchestrator.errors import ConfigError, CorruptObject
from orchestrator.paths import JobKeys
from orchestrator.runtime.chaos import progress_clock
from orchestrator.runtime.link import AgentLink, Order, Phase, ProgressClock
from orchestrator.runtime.notice import on_sigterm
from orchestrator.runtime.task import RankTask
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import ObjectStore, open_store

MODULUS = 1_000_003


def next_value(value: int, step: int) -> int:
    return (value * 31 + step) % MODULUS


def main(task: RankTask) -> int:
    link = AgentLink(Path(task.agent_socket), task.rank)
    link.send("hello", pid=os.getpid(), host=socket.gethostname())
    on_sigterm(partial(link.send, "preempted"))
    try:
        _live(task, link)
    except (ValueError, ConfigError, ConnectionError) as error:
        reason = "CONFIGURATION" if isinstance(error, ConfigError) else "USER_ERROR"
        echo = isinstance(error, ConnectionError)
        name = type(error).__name__
        link.send("error", end_reason=reason, message=f"{name}: {error}", traceback="the traceback", fingerprint=name, echo=echo)
        return 1
    return 0


def _live(task: RankTask, link: AgentLink) -> None:
    spec: JobSpec = from_dict(JobSpec, task.spec)
    store = open_store(spec.storage)
    clock = progress_clock(task, spec, link)
    step, value = _restore(task, store, link)
    print(f"rank {task.rank} of epoch {task.epoch} begins at {step}")
    for name in spec.environment.secrets:
        print(f"{name} has the digest {sha256(os.environ[name].encode()).hexdigest()}")
    if task.rank == 0:
        link.send("started", first_step=step + 1)
    stopped = False
    while step < spec.training.max_steps and not stopped:
        step += 1
        clock.tick(step, Phase.FORWARD)
        _fail_on_order(spec, task, step)
        time.sleep(spec.workload.options.get("step_s", 0.001))
        value = next_value(value, step)
        if task.rank == 0:
            link.send("metrics", step=step, values={"loss": float(value)})
        stopped = clock.order() is Order.DRAIN
        if step % spec.checkpoint.interval_steps == 0 or step == spec.training.max_steps or stopped:
            _save(task, link, clock, step, value)
    while any(slab.state is SlabState.STAGED for slab in _slabs(task)):
        time.sleep(0.001)
    link.send("done", step=step, stopped=stopped)


def _restore(task: RankTask, store: ObjectStore, link: AgentLink) -> tuple[int, int]:
    log = CommitLog(store, JobKeys(task.job_id))
    for key in task.commits:
        try:
            ref = log.read(key)
            scalars = log.load_manifest(ref).job_scalars
        except CorruptObject as error:
            link.send("suspect", commit=key, message=str(error))
            continue
        if task.rank == 0:
            link.send("restored", step=ref.step, commit=key)
        return ref.step, scalars["value"]
    return 0, 1


def _save(task: RankTask, link: AgentLink, clock: ProgressClock, step: int, value: int) -> None:
    """One tensor, of which each rank writes one element. Steps of a drain differ between ranks: only a common one is committed."""
    prefix, spent_s = JobKeys(task.job_id).checkpoint(step, task.epoch, "double"), clock.spent().by_phase_s
    slab = _wait_free(task)
    slab.content[:4] = value.to_bytes(4, "little")
    row = Row(name="w", role="param", dtype="float32", global_shape=(task.world_size,), start=task.rank, count=1, item_bytes=4)
    slab.describe(Staged(job_id=task.job_id, epoch=task.epoch, step=step, prefix=prefix, writer=task.rank, rows=(row,)))
    slab.state = SlabState.STAGED
    extra = {"spent_s": spent_s, **({"job_scalars": {"step": step, "value": value}} if task.rank == 0 else {})}
    link.send("staged", step=step, checkpoint=prefix, writer=task.rank, slab=str(slab.path), num_bytes=ALIGN_BYTES, stage_s=0.0, **extra)


def _wait_free(task: RankTask) -> Slab:
    while True:
        for slab in _slabs(task):
            if slab.state is SlabState.FREE:
                return slab
        time.sleep(0.001)


def _slabs(task: RankTask) -> list[Slab]:
    paths = [slab_path(Path(task.slab_folder), f"{task.slab_stem}-{task.rank}", number) for number in range(2)]
    return [Slab.create(path, ALIGN_BYTES) for path in paths]


def _fail_on_order(spec: JobSpec, task: RankTask, step: int) -> None:
    for fault in spec.workload.options.get("faults", ()):
        if (fault["rank"], fault["step"]) == (task.rank, step) and task.epoch <= fault.get("epochs", 10**6):
            _fail(fault["how"], Path(fault.get("until", "").format(epoch=task.epoch)))


def _fail(how: str, until: Path) -> None:
    match how:
        case "raise":
            raise ValueError("a bug of the user's")
        case "echo":
            raise ConnectionError("Connection reset by peer")
        case "bad_config":
            raise ConfigError("training.max_steps=-1 is not possible")
        case "exit":
            sys.exit(7)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hold":
            time.sleep(600)
        case "come":
            until.touch()
        case "wait":
            while not until.exists():
                time.sleep(0.01)
