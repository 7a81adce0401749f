"""The controller's process: takes the lock, joins Ray, turns the loop, and asks its keeper to stop after an idle time.

    python -m orchestrator.control.serve --home HOME --address HOST:PORT
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator.control.controller import Controller
from orchestrator.control.environment import remote_environment
from orchestrator.control.keeper import ClusterFile
from orchestrator.control.lock import ControllerLock, cluster_lock, holder, if_free
from orchestrator.control.processes import CLUSTER_MARK
from orchestrator.control.provisioning import Provisioner
from orchestrator.control.store import JobStore
from orchestrator.errors import ClusterError
from orchestrator.job import JobState
from orchestrator.paths import Home
from orchestrator.supervision.warm_client import RANK_ENTRY

ROUND_S = 0.1
BLIND_LIMIT_S = 30.0
"""A controller that cannot read Ray's nodes for so long leaves: Ray is gone."""
EXIT_SECOND, EXIT_CLUSTER = 3, 4

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
        self, home: Home, address: str, idle_timeout_s: float | None, lock: ControllerLock, rank_entry: str = RANK_ENTRY
    ) -> None:
        self._rank_entry = rank_entry
        self._home = home
        self._address = address
        self._idle_timeout_s = idle_timeout_s
        self._lock = lock
        self._told_to_stop = False
        self._ready = False
        self._busy_s = time.time()

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        from orchestrator.control.cluster import observe  # imports Ray, which reads the environment
        from orchestrator.control.ray_autoscaler import RayAutoscaler
        from orchestrator.control.ray_groups import RayGroups

        store = JobStore(self._home.jobs_db)
        pool = ThreadPoolExecutor(max_workers=16, thread_name_prefix="ask")
        groups = RayGroups(self._home, pool, self._rank_entry)
        provisioner = Provisioner(self._home.node_types, RayAutoscaler(self._address, pool))
        controller = Controller(store, self._home, groups, lambda: pool.submit(observe), provisioner=provisioner)
        while not self._told_to_stop:
            now = time.time()
            controller.step(now)
            if self._is_blind(controller, now):
                return EXIT_CLUSTER
            self._look_after(controller, store, now)
            store.wait_for_change(ROUND_S)
        provisioner.close()
        groups.close()
        return 0

    def _on_signal(self, _number: int, _frame: Any) -> None:
        self._told_to_stop = True

    def _is_blind(self, controller: Controller, now: float) -> bool:
        seen_s = controller.seen_s if controller.seen_s is not None else self._busy_s
        if now - seen_s <= BLIND_LIMIT_S:
            return False
        log.error("Ray at %s has not answered for %.0f s", self._address, now - seen_s)
        return True

    def _look_after(self, controller: Controller, store: JobStore, now: float) -> None:
        if controller.seen_s is not None and not self._ready:
            self._ready = True
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
    parser = argparse.ArgumentParser(prog="python -m orchestrator.control.serve", description="Control the jobs of a Ray cluster.")
    parser.add_argument("--home", required=True)
    parser.add_argument("--address", required=True, help="host:port of the Ray head")
    parser.add_argument("--idle-timeout-s", type=float, default=None, help="ask the keeper to stop after so long without a job")
    parser.add_argument("--wait-s", type=float, default=10.0, help="how long Ray may take to come up")
    parser.add_argument("--rank-entry", default=RANK_ENTRY, help="what the ranks run, module:function; tests give a double")
    chosen = parser.parse_args(arguments)
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
        _join(chosen.address, chosen.wait_s)
    except ClusterError as error:
        log.error("%s", error)
        return EXIT_CLUSTER
    return Service(home, chosen.address, chosen.idle_timeout_s, lock, chosen.rank_entry).run()


def _join(address: str, wait_s: float) -> None:
    """Become a driver of the Ray cluster. Raises ClusterError."""
    from orchestrator.control.cluster import wait_for_ray

    wait_for_ray(address, wait_s)
    import ray

    from orchestrator.supervision.place import NAMESPACE

    ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)


def _set_up_log() -> None:
    output = logging.StreamHandler()
    output.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[output], force=True)


if __name__ == "__main__":
    # All that counts is in the store. To wait for the threads, and for Ray, which may be gone already, would take seconds.
    os._exit(main())
