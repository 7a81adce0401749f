"""The agent: owns the processes of one job on one node. A detached Ray actor, in its bundle of the job's placement group or a standby."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from orchestrator.checkpoints.peer_copies import Answer, CopyId, PeerCopies
from orchestrator.checkpoints.slab import Staged, remove_slabs
from orchestrator.paths import Home, JobKeys
from orchestrator.ports import hold_port
from orchestrator.runtime.link import Order, ProgressClock, Reading
from orchestrator.runtime.notice import on_sigterm
from orchestrator.spec import JobSpec, from_dict, to_dict
from orchestrator.storage import open_store
from orchestrator.supervision import warm_client
from orchestrator.supervision.inspection import inspect_ranks, node_health, text_since
from orchestrator.supervision.log_shipper import LogShipper, log_name
from orchestrator.supervision.peer_copier import AgentPeer, PeerCopier
from orchestrator.supervision.rank_hub import Fork, Message, RankHub
from orchestrator.supervision.uploader_child import UploaderChild
from orchestrator.supervision.watch import Watch

LOG_TAIL_BYTES = 4000
CLOCKS_INTERVAL_S = 1.0
SHARED_MEMORY = Path("/dev/shm")
MEMORY_SHARE = 0.1
CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")

log = logging.getLogger("orchestrator.agent")


class Agent:
    """Its methods are called by the supervisor; `supervisor.report(bundle, messages)` is what it calls in turn, one-way."""

    def __init__(self, home: str) -> None:
        self._home = Home(Path(home))
        self._supervisor: Any = None
        importlib.import_module("orchestrator.supervision.supervisor")  # Ray would, in `begin`: it loads the class of a handle that it gets
        on_sigterm(self._give_notice)

    def ready(self) -> None:
        """Answers when the process is up."""

    def begin(self, job_id: str, bundle: int, entry: str, supervisor: Any, variables: Mapping[str, str] | None = None) -> None:
        """Its job, before all other calls. Starts the node's warm process, if there is none. Raises ClusterError."""
        self._job_id = job_id
        self._bundle = bundle
        self._supervisor = supervisor
        self._folder = self._home.node(job_id)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clocks: dict[int, ProgressClock] = {}
        self._clocks_in_use = threading.Lock()
        self._clocks_told_s = 0.0
        self._clock_paths: list[Path] = []
        self._out_of_memory = _kernel_kills()
        self._memory_folder = memory_folder(self._folder)
        self._uploader: UploaderChild | None = None
        self._watch: Watch | None = None
        self._epoch = 0
        self._meeting: socket.socket | None = None
        for left in self._memory_folder.glob(f"{self._clock_name('*')}"):
            left.unlink(missing_ok=True)
        remove_slabs(self._memory_folder, self._slab_stem)  # of an agent before this one: they may be torn
        self._copies = PeerCopies(self._memory_folder, self._slab_stem)
        self._copier: PeerCopier | None = None
        self._logs = LogShipper(JobKeys(job_id))
        self._logs.take_over(self._folder, bundle)
        name = f"agent-{bundle}.sock"
        self._socket = warm_client.short_folder(self._folder, name) / name
        raylet = os.getppid()
        self._hub = RankHub(
            self._socket, lambda: warm_client.connect(self._home, entry, raylet, variables), self._pass_on, self._exit_facts
        )

    def start_ranks(self, epoch: int, tasks: list[dict[str, Any]], env: dict[str, str], peer: Any = None) -> None:
        """Fork the ranks of `tasks` (RankTask as a dict, without its places on this node). Raises ClusterError.

        `env` holds the job's secrets; the ranks get it and so does this process's object store. `peer`: the agent that gets a copy of
        what they stage.
        """
        spec: JobSpec = from_dict(JobSpec, tasks[0]["spec"])
        environ = {**os.environ, **env}
        self._logs.use(lambda: open_store(spec.storage, environ))
        self._begin_uploads(epoch, spec, environ)
        self._begin_copies(epoch, spec, peer, len(tasks))
        self._out_of_memory = _kernel_kills()
        self._end_watch()
        self._drop_clocks()
        self._epoch = epoch
        environment = {**env, **self._rank_environment()}
        self._hub.start(epoch, [self._fork(epoch, task, environment) for task in tasks])
        if spec.recovery.hang_timeout_s:
            limits = spec.recovery.hang_timeout_s, spec.recovery.long_phase_timeout_s
            self._watch = Watch(self._readings, lambda hangs: self._tell_hang(epoch, hangs), *limits)

    def kill_ranks(self) -> None:
        """SIGKILL; returns when all are gone. Raises ClusterError."""
        self._end_watch()
        self._hub.kill()

    def inspect(self) -> dict[str, Any]:
        """How the ranks of this node are: `ranks`, a list of `hang.RankView` as dicts, and `node`. Takes as long as they take to answer."""
        watch = self._watch
        still_s = watch.stillness.still_s if watch is not None else lambda rank: 0.0
        logs = {rank: self._log_path(self._epoch, rank) for rank in self._clocks}
        return {"ranks": inspect_ranks(self._hub.pids(), self._readings(), still_s, logs), "node": node_health(self._memory_folder)}

    def order(self, order: int) -> None:
        for clock in self._clocks.values():
            clock.give(Order(order))

    def pids(self) -> dict[int, int]:
        return self._hub.pids()

    def address(self) -> tuple[str, int]:
        """(this node's address, a port that is kept for rank 0) for the ranks' rendezvous."""
        if self._meeting is not None:
            self._meeting.close()
        node = str(ray.util.get_node_ip_address())
        self._meeting = hold_port(node)
        return node, int(self._meeting.getsockname()[1])

    def stop_uploads(self) -> None:
        """What is on its way to the store is given up."""
        self._copies.close()
        if self._copier is not None:
            self._copier.close()
        if self._uploader is not None:
            self._uploader.close()

    def adopt(self, bundle: int, unsaved: set[tuple[int, str]]) -> set[tuple[int, str]]:
        """Store in place of a node that is lost what of `unsaved` lies here as a copy: (writer, key prefix). Returns that."""
        if self._uploader is None:
            return set()
        messages = self._copies.adopt(bundle, unsaved)
        for message in messages:
            self._uploader.take(message)
        return {(message["writer"], message["checkpoint"]) for message in messages}

    @ray.method(concurrency_group="copies")  # type: ignore[untyped-decorator,unused-ignore]
    def open_copy(self, copy: CopyId, staged: Staged) -> Answer:
        return self._copies.open(copy, staged)

    @ray.method(concurrency_group="copies")  # type: ignore[untyped-decorator,unused-ignore]
    def write_copy(self, copy: CopyId, start: int, data: np.ndarray, crc: int) -> bool:
        return self._copies.write(copy, start, data, crc)

    @ray.method(concurrency_group="copies")  # type: ignore[untyped-decorator,unused-ignore]
    def complete_copy(self, copy: CopyId, constant: tuple[str, int] | None, message: Message) -> bool:
        return self._copies.complete(copy, constant, message)

    def close(self) -> bool:
        """End the uploader and ship all output of the ranks, which are gone. False if the store did not take it."""
        self.stop_uploads()
        return self._logs.flush()

    def leave(self) -> None:
        """Before this process is killed: end ranks and uploader, which removes the slabs; Ray would kill it too. Raises ClusterError."""
        self._hub.kill()
        self.stop_uploads()

    @ray.method(concurrency_group="wait")  # type: ignore[untyped-decorator,unused-ignore]
    def wait(self) -> None:
        """Never returns: a caller that waits for it learns of this process's death at once."""
        threading.Event().wait()

    def _give_notice(self) -> None:
        """On SIGTERM, on a thread of its own."""
        if self._supervisor is None:
            os._exit(0)
        self._supervisor.preempt.remote(f"the agent of node {self._bundle} got SIGTERM", None)

    def _fork(self, epoch: int, task: dict[str, Any], environment: dict[str, str]) -> Fork:
        rank = task["rank"]
        clock = self._memory_folder / self._clock_name(str(rank))
        self._clocks[rank] = ProgressClock(clock, create=True)
        self._clock_paths.append(clock)
        path = self._log_path(epoch, rank)
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        self._logs.follow(path, epoch, rank)
        places = {"agent_socket": self._socket, "clock": clock, "slab_folder": self._memory_folder, "slab_stem": self._slab_stem}
        told = {**task, **{name: str(place) for name, place in places.items()}}
        return Fork(rank=rank, task=told, env=environment, log=str(path))

    def _readings(self) -> dict[int, Reading]:
        """Of the ranks that live."""
        return {rank: clock.read() for rank, clock in list(self._clocks.items()) if rank in self._hub.pids()}

    def _tell_hang(self, epoch: int, hangs: bool) -> None:
        """On the watch's thread."""
        told = {"type": "hangs" if hangs else "moves", "rank": min(self._clocks, default=-1), "epoch": epoch, "time_s": time.time()}
        self._supervisor.report.remote(self._bundle, [told])

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _drop_clocks(self) -> None:
        with self._clocks_in_use:
            for clock in self._clocks.values():
                clock.close()
            for path in self._clock_paths:
                path.unlink(missing_ok=True)
            self._clocks.clear()
            self._clock_paths.clear()

    def _exit_facts(self, rank: int) -> Message:
        """Of a rank that has just ended: its file is gone, the memory is still here."""
        with self._clocks_in_use:
            clock = self._clocks.get(rank)
            return {} if clock is None else {"clock": clock.spent().to_dict(time.monotonic(), time.time())}

    def _told_clocks(self) -> list[Message]:
        """For the ledger of who looks on, for what is known of these ranks if this process dies, and as a sign that it acts."""
        now = time.monotonic()
        if now - self._clocks_told_s < CLOCKS_INTERVAL_S:
            return []
        self._clocks_told_s, time_s = now, time.time()
        with self._clocks_in_use:
            clocks = {rank: clock.spent().to_dict(now, time_s) for rank, clock in list(self._clocks.items())}
            return [{"type": "clocks", "rank": min(clocks, default=-1), "epoch": self._epoch, "time_s": time_s, "clocks": clocks}]

    def _pass_on(self, messages: list[Message]) -> None:
        """On the hub's thread."""
        for message in messages:
            if message["type"] == "exit":
                self._complete_exit(message)
            elif self._uploader is not None and message["type"] == "staged":
                self._uploader.take(message)
                if self._copier is not None:
                    self._copier.take(message)
            elif self._uploader is not None:
                self._uploader.heard(message)
        told = [*messages, *self._told_clocks()]
        if told:
            self._supervisor.report.remote(self._bundle, told)

    def _begin_uploads(self, epoch: int, spec: JobSpec, environ: Mapping[str, str]) -> None:
        if self._uploader is None:
            opened = {
                "storage": to_dict(spec.storage), "folder": str(self._memory_folder), "stem": self._slab_stem,
                "agent_socket": str(self._socket), "bytes_per_s": spec.checkpoint.max_upload_mb_per_s * 1e6,
            }  # fmt: skip
            self._uploader = UploaderChild(opened, environ, self._folder / f"uploader-{self._bundle}.log", self._report_failure)
        self._uploader.begin(epoch)

    def _begin_copies(self, epoch: int, spec: JobSpec, peer: Any, num_ranks: int) -> None:
        self._copies.begin(epoch)
        if self._copier is None and peer is not None:
            self._copier = PeerCopier(self._bundle, spec.checkpoint.max_upload_mb_per_s * 1e6, self._warn_of_copies)
        if self._copier is not None:
            self._copier.begin(epoch, None if peer is None else AgentPeer(peer), num_ranks)

    def _warn_of_copies(self, message: Message, why: str) -> None:
        text = f"the newest state of node {self._bundle} has no copy on another node: {why}"
        told = {"type": "warning", "rank": message["rank"], "epoch": message["epoch"], "time_s": time.time(), "message": text}
        self._supervisor.report.remote(self._bundle, [told])

    def _report_failure(self, message: Message) -> None:
        self._supervisor.report.remote(self._bundle, [{"time_s": time.time(), **message}])

    def _complete_exit(self, message: Message) -> None:
        path = self._log_path(message["epoch"], message["rank"])
        tail = text_since(path, -LOG_TAIL_BYTES, -1)
        if not message["greeted"] and message.get("note"):
            # It never ran the rank's program: the reason stands in the warm process's log.
            tail = tail or warm_client.log_tail(self._home)
        message["log_tail"] = tail
        message["out_of_memory"] = _kernel_kills() > self._out_of_memory
        self._logs.ended(message["epoch"], message["rank"])

    def _log_path(self, epoch: int, rank: int) -> Path:
        return self._folder / log_name(self._bundle, epoch, rank)

    @property
    def _slab_stem(self) -> str:
        return f"orchestrator-{self._job_id}-{self._bundle}"

    def _clock_name(self, rank: str) -> str:
        return f"orchestrator-{self._job_id}-{self._bundle}-{rank}.clock"

    def _rank_environment(self) -> dict[str, str]:
        environment = {"GLOO_SOCKET_IFNAME": _interface_of(str(ray.util.get_node_ip_address()))}
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU") or []
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return {name: value for name, value in environment.items() if value}


def memory_folder(fallback: Path, shared: Path = SHARED_MEMORY, least_share: float = MEMORY_SHARE) -> Path:
    """Where files are memory: `shared` if it may hold `least_share` of the machine's memory. A container's default of 64 MB may not."""
    if not os.access(shared, os.W_OK):
        return fallback
    place = os.statvfs(shared)
    size = place.f_blocks * place.f_frsize
    if size >= least_share * psutil.virtual_memory().total:
        return shared
    log.warning("%s has only %.2f GB: what is saved passes through %s, on a disk", shared, size / 1e9, fallback)
    return fallback


def _interface_of(address: str) -> str:
    """The network interface that has `address`; empty if none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return str(name)
    return ""


def _kernel_kills() -> int:
    """How many processes of this container the kernel has killed for memory; 0 where it does not say."""
    try:
        for line in CGROUP_EVENTS.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    except OSError:
        return 0
    return 0
