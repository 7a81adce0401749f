"""The controller's process: takes the lock and the lease, joins Ray, turns the loop, and asks its keeper to stop after an idle time.

    python -m orchestrator.control.serve --home HOME --address HOST:PORT [--api-host 127.0.0.1 --api-port 8470]

With a port it answers HTTP, too: from a thread of its own, for which the loop never waits.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.control.controller import Controller
from orchestrator.control.environment import remote_environment
from orchestrator.control.file_locks import if_free
from orchestrator.control.forward_clock import ForwardClock
from orchestrator.control.keeper import ClusterFile
from orchestrator.control.lock import ControllerLock, cluster_lock, holder
from orchestrator.control.nodes.provisioning import Provisioner
from orchestrator.control.nodes.threads import Threads
from orchestrator.control.processes import CLUSTER_MARK
from orchestrator.control.pulse import Pulse
from orchestrator.control.records.database import place_of
from orchestrator.control.records.lease import ControllerLease
from orchestrator.control.records.store import JobStore
from orchestrator.control.secrets import Secrets
from orchestrator.errors import ClusterError, OrchestratorError, StateError, StoreUnavailable
from orchestrator.job import JobState
from orchestrator.paths import Home
from orchestrator.supervision.warm_client import RANK_ENTRY

if TYPE_CHECKING:
    from orchestrator.control.api.server import ApiServer

ROUND_S = 0.1
BLIND_LIMIT_S = 30.0
"""A controller that cannot read Ray's nodes for so long leaves: Ray is gone."""
EXIT_FAULT, EXIT_SECOND, EXIT_CLUSTER, EXIT_STORE = 1, 3, 4, 5

log = logging.getLogger("controller")


class JsonLines(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname, "part": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Service:
    """The loop around a controller."""

    def __init__(
        self, home: Home, address: str, idle_timeout_s: float | None, lock: ControllerLock, lease: ControllerLease, pulse: Pulse,
        rank_entry: str = RANK_ENTRY,
    ) -> None:  # fmt: skip
        self._rank_entry = rank_entry
        self._home = home
        self._lease = lease
        self._pulse = pulse
        self._address = address
        self._idle_timeout_s = idle_timeout_s
        self._lock = lock
        self._told_to_stop = False
        self._ready = False
        self._busy_s = time.time()

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        from orchestrator.control.nodes.cluster import observe  # imports Ray, which reads the environment
        from orchestrator.control.nodes.ray_autoscaler import RayAutoscaler
        from orchestrator.control.nodes.ray_groups import RayGroups

        store = JobStore(place_of(self._home))
        secrets = Secrets(self._home)
        secrets.sweep(store, time.time())
        threads = Threads()
        groups = RayGroups(self._home, threads, self._rank_entry)
        provisioner = Provisioner(self._home.node_types, RayAutoscaler(self._address, threads.looks))
        controller = Controller(store, self._home, groups, lambda: threads.looks.submit(observe), provisioner)
        clock = ForwardClock()
        began_s = clock()
        while not self._told_to_stop:
            now, began = clock(), time.perf_counter()
            controller.step(now)
            self._pulse.beat(time.perf_counter() - began)
            if self._is_blind(controller.seen_s or began_s, now):
                return EXIT_CLUSTER
            self._look_after(controller, store, now)
            store.wait_for_change(ROUND_S)
        secrets.sweep(store, time.time())
        provisioner.close()
        groups.close()
        self._lease.release()
        return 0

    def _on_signal(self, _number: int, _frame: Any) -> None:
        self._told_to_stop = True

    def _is_blind(self, seen_s: float, now: float) -> bool:
        if now - seen_s <= BLIND_LIMIT_S:
            return False
        log.error("Ray at %s has not answered for %.0f s", self._address, now - seen_s)
        return True

    def _look_after(self, controller: Controller, store: JobStore, now: float) -> None:
        if controller.seen_s is not None and not self._ready:
            self._ready = self._pulse.ready = True
            settle_memory()
            self._lock.publish(self._address, ready=True)
            log.info("ready at %s", self._address)
        if controller.live_jobs:
            self._busy_s = now
        elif self._idle_timeout_s is not None and now - self._busy_s > self._idle_timeout_s:
            self._ask_to_stop(store, now)

    def _ask_to_stop(self, store: JobStore, now: float) -> None:
        """Unless a command has just found this cluster, and is about to submit."""
        with if_free(cluster_lock(self._home)) as free:
            file = ClusterFile.read(self._home)
            if not free or file is None or self._idle_timeout_s is None:
                return
            used_s = self._home.cluster_file.stat().st_mtime
            if now - used_s <= self._idle_timeout_s or store.all([state for state in JobState if not state.terminal]):
                return
            log.info("idle for %.0f s: the cluster stops", now - self._busy_s)
            dataclasses.replace(file, stopping=True).write(self._home)
            os.kill(file.keeper_pid, signal.SIGTERM)
            self._told_to_stop = True


def settle_memory() -> None:
    """What is there now stays: searches for cycles pass it over, and look at all of the rest seldom. With a thousand jobs each of those
    would stop a round for a tenth of a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def main(arguments: list[str] | None = None) -> int:
    chosen = _parsed(arguments)
    _set_up_log()
    home = Home(Path(chosen.home))
    lock = ControllerLock(home)
    if not lock.acquire():
        found = holder(home)
        log.error("another controller serves %s%s; this one leaves", home.root, f" (pid {found.pid})" if found else "")
        return EXIT_SECOND
    lock.publish(chosen.address, ready=False)
    if CLUSTER_MARK not in os.environ:
        os.environ.update(remote_environment(home, chosen.address))
    try:
        return _serve(home, chosen, lock)
    except (ClusterError, StoreUnavailable) as error:
        log.error("%s", error)
        return EXIT_STORE if isinstance(error, StoreUnavailable) else EXIT_CLUSTER
    except StateError as error:
        log.error("%s", error)
        return EXIT_SECOND
    except OrchestratorError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception:  # this process must end: as long as it lives it keeps lock and lease
        log.exception("the controller failed")
        return EXIT_FAULT


def _serve(home: Home, chosen: argparse.Namespace, lock: ControllerLock) -> int:
    """Raises StateError for a second controller of the same store, ClusterError, StoreUnavailable."""
    pulse = Pulse()
    server = _api(chosen)
    lease = ControllerLease(JobStore(place_of(home)).engine)
    lease.acquire()
    lease.keep(_leave_without_lease)
    if server is not None:
        server.start(home, JobStore(place_of(home)), pulse)
    pulse.dashboard = _join(chosen.address, chosen.wait_s)
    try:
        return Service(home, chosen.address, chosen.idle_timeout_s, lock, lease, pulse, chosen.rank_entry).run()
    finally:
        if server is not None:
            server.stop()


def _leave_without_lease() -> None:
    """At once, whatever the loop waits for: another controller may act now."""
    log.error("the lease on the job store is over: another controller may act now; this one leaves")
    os._exit(EXIT_STORE)


def _api(chosen: argparse.Namespace) -> ApiServer | None:
    """Raises ClusterError if its port is taken."""
    if chosen.api_port is None:
        return None
    from orchestrator.control.api.server import ApiServer

    return ApiServer(chosen.api_host, chosen.api_port, open_reads=chosen.open_reads)


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.control.serve", description="Control the jobs of a Ray cluster.")
    parser.add_argument("--home", required=True)
    parser.add_argument("--address", required=True, help="host:port of the Ray head")
    parser.add_argument("--idle-timeout-s", type=float, default=None, help="ask the keeper to stop after so long without a job")
    parser.add_argument("--wait-s", type=float, default=10.0, help="how long Ray may take to come up")
    parser.add_argument("--rank-entry", default=RANK_ENTRY, help="what the ranks run, module:function; tests give a double")
    parser.add_argument("--api-host", default="127.0.0.1")
    parser.add_argument("--api-port", type=int, default=None, help="answer HTTP there")
    parser.add_argument("--open-reads", action="store_true", help="requests that change nothing need no token")
    return parser.parse_args(arguments)


def _join(address: str, wait_s: float) -> str:
    """Become a driver of the Ray cluster. Returns where its dashboard is; empty: it has none. Raises ClusterError."""
    from orchestrator.control.nodes.cluster import wait_for_ray

    wait_for_ray(address, wait_s)
    import ray

    from orchestrator.supervision.place import NAMESPACE

    joined = ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    return joined.dashboard_url or ""


def _set_up_log() -> None:
    output = logging.StreamHandler()
    output.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[output], force=True)


if __name__ == "__main__":
    # All that counts is in the store. To wait for the threads, and for Ray, which may be gone already, would take seconds.
    os._exit(main())
