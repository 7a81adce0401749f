"""What is kept for who asks again soon: opened object stores, and readers of logs at the place where they stopped."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from orchestrator.control.reading.logs import LogReader
from orchestrator.control.reading.pages import LogPage, read_page
from orchestrator.job import Job
from orchestrator.spec import StorageSpec
from orchestrator.storage import ObjectStore, open_store

MAX_STORES = 32
MAX_READERS = 64
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, MAX_ATTEMPTS = 5.0, 10.0, 2
"""The most for a store that is read while somebody waits for the answer, whatever its job allows."""

Value = TypeVar("Value")


class Opened:
    """For any number of threads. A store is its settings with its keys: who comes with others gets another one."""

    def __init__(self, open_: Callable[[StorageSpec, Mapping[str, str]], ObjectStore] = open_store) -> None:
        self._open = open_
        self._stores = _Latest[ObjectStore](MAX_STORES)
        self._readers = _Latest[LogReader](MAX_READERS)

    def store(self, spec: StorageSpec, secrets: Mapping[str, str]) -> ObjectStore:
        """`secrets` come before the environment of this process."""
        key = (spec, frozenset(secrets.items()))
        found = self._stores.get(key)
        if found is None:
            found = self._open(spec, {**os.environ, **secrets})
            self._stores.put(key, found)
        return found

    def log_page(self, store: ObjectStore, job: Job, after: str, rank: int | None) -> LogPage:
        """See `read_page`. Who goes on from the page before need not have all pieces listed again."""
        reader = self._readers.take((id(store), job.id, rank, after)) or LogReader(store, job.id, rank, after)
        page = read_page(reader, job, after)
        if not page.more:
            self._readers.put((id(store), job.id, rank, page.offset), reader)
        return page


def open_for_answers(spec: StorageSpec, environ: Mapping[str, str]) -> ObjectStore:
    """As `open_store`; a store that does not answer is given up after some seconds."""
    return open_store(impatient(spec), environ)


def impatient(spec: StorageSpec) -> StorageSpec:
    limits = {"connect_timeout_s": CONNECT_TIMEOUT_S, "read_timeout_s": READ_TIMEOUT_S, "max_attempts": MAX_ATTEMPTS}
    return dataclasses.replace(spec, **{name: min(limit, getattr(spec, name)) for name, limit in limits.items()})


class _Latest(Generic[Value]):
    """Those that were used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def take(self, key: Hashable) -> Value | None:
        """Nobody else gets it, until it is put back."""
        with self._lock:
            return self._kept.pop(key, None)

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._kept[key] = value
            self._kept.move_to_end(key)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
