"""Actors that are up before a job needs them: a supervisor on the head, an agent on each node. To start one takes more than a second.

A job keeps what it was given until it ends; it is never another's. When code or packages change, those that stand by are made anew. Where
an agent must be in the job's place to learn which GPUs it has, on nodes with GPUs, there are none.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Collection, Sequence
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.paths import Home
from orchestrator.supervision.place import actor_names, kill_named
from orchestrator.supervision.supervisor import create_supervisor
from orchestrator.supervision.warm_client import content
from orchestrator.supervision.worker_group import create_agent

PREFIX = "standby:"
HEAD = ""
"""In the place of a node: the supervisor."""
READY_LIMIT_S = 60.0
LOOK_S = 2.0
"""Between two looks, while nothing is missing, whether the code has changed."""
MAX_AGENTS = 16
"""An actor takes about 65 MB of its node."""

log = logging.getLogger("orchestrator.supervisor")


class Standby:
    """`take`, `put_back` and `lacks` do not wait; `fill` and `close` do."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._ready: dict[str, str] = {}
        self._content = ""
        """Of the code that those which are ready have imported."""
        self._looked_s = -math.inf
        self._swept = False

    def take(self, nodes: Sequence[str], agents: bool) -> tuple[str, ...]:
        """Names of a supervisor and of an agent on each of `nodes`; '' for what is not ready. They are the caller's now."""
        places = [HEAD, *(nodes if agents else ())]
        with self._lock:
            if self._content != content():
                self._looked_s = -math.inf
                return ("",) * len(places)
            return tuple(self._ready.pop(place, "") for place in places)

    def put_back(self, nodes: Sequence[str], names: Sequence[str]) -> None:
        """What `take` has given for `nodes`, unused."""
        with self._lock:
            self._ready |= {place: name for place, name in zip((HEAD, *nodes), names, strict=False) if name}

    def lacks(self, nodes: Sequence[str]) -> bool:
        """Whether `fill` has something to do."""
        with self._lock:
            if not self._swept or any(place not in self._ready for place in _places(nodes)):
                return True
            if (now := time.monotonic()) - self._looked_s < LOOK_S:
                return False
            self._looked_s = now
            return self._content != content()

    def fill(self, nodes: Sequence[str], used: Collection[str]) -> None:
        """Start what is missing. `used`: what jobs have; what else there is was left by a controller that is gone, and is ended."""
        self._sweep(used)
        if self._content != (now := content()):
            self.close()
            self._content = now
        with self._lock:
            missing = [place for place in _places(nodes) if place not in self._ready]
        started = [(place, *self._start(place)) for place in missing]
        for place, name, answer in started:
            try:
                ray.get(answer, timeout=READY_LIMIT_S)
            except RayError as error:
                log.warning("no actor stands by on node %s: %s", place[:8] or "of the head", error)
                kill_named(name)
                continue
            with self._lock:
                self._ready[place] = name

    def close(self) -> None:
        with self._lock:
            names, self._ready = list(self._ready.values()), {}
        for name in names:
            kill_named(name)

    def _start(self, place: str) -> tuple[str, ray.ObjectRef]:
        name = f"{PREFIX}{uuid4().hex}"
        if place == HEAD:
            return name, create_supervisor(name, self._home).job.remote()
        return name, create_agent(name, self._home, NodeAffinitySchedulingStrategy(node_id=place, soft=False)).ready.remote()

    def _sweep(self, used: Collection[str]) -> None:
        if not self._swept:
            for name in actor_names():
                if name.startswith(PREFIX) and name not in used:
                    kill_named(name)
            self._swept = True


def _places(nodes: Sequence[str]) -> list[str]:
    return [HEAD, *sorted(nodes)[:MAX_AGENTS]]
