"""The commit protocol cannot tear a checkpoint: every interleaving of its requests is searched, and each protection is shown to be needed.

What holds in every state: (a) no reader sees a state that is uncommitted or mixed; (b) no announced commit is lost: it is on the chain,
or marked suspect, or retired because newer ones count; (c) an epoch has one owner; (d) its base never changes; (e) once a newer base
exists, nothing that an older epoch does changes the chain. And from every state a new supervisor comes to a new commit.

The model's actors are the real `CommitLog` (see `protocol_model`), so there is no second description of the protocol to go stale.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from protocol_model import Scope, reader, supervisor, writer
from protocol_search import Search

from orchestrator.checkpoints.commit import _NO_LIMIT, CommitLog, Epoch, _sealed

OLD_AND_TWIN = (supervisor("A", 2), supervisor("B", 1))
GROUPS = (supervisor("A", 2), writer("A-w0"), writer("A-w1"), supervisor("B", 1), writer("B-w0"), writer("B-w1"))
SCOPES = {
    "a twin, and a reader": (Scope((*OLD_AND_TWIN, reader("R"))), 20_000),
    "a twin, and an answer lost": (Scope((supervisor("A", 1), supervisor("B", 1)), faults=1), 10_000),
    "three epochs": (Scope((supervisor("A", 1), supervisor("B", 1), supervisor("C", 0))), 20_000),
    "writers that run ahead": (Scope(GROUPS, split_writers=True), 5_000),
    "a twin, and damage": (Scope(OLD_AND_TWIN, damages=1), 10_000),
    "a reader, and damage": (Scope((supervisor("A", 2), reader("R")), damages=1), 1_000),
    "retirement, and a twin": (Scope(OLD_AND_TWIN, keep_last=1), 2_000),
    "retirement, a reader, an answer lost": (Scope((supervisor("A", 2), reader("R", whole=False)), keep_last=1, faults=1), 5_000),
}
"""Who takes part and what goes wrong, and a number of states that the search must exceed to have been one."""


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Damaged bases are told of in thousands of states."""
    caplog.set_level(logging.ERROR, "orchestrator.checkpoints")


@pytest.mark.parametrize("name", SCOPES)
def test_no_interleaving_breaks_the_protocol(name, caplog):
    scope, more_than = SCOPES[name]
    search = Search(scope)
    assert search.explore() == []
    recovered = search.goes_on()
    print(f"{name}: {search.states} states, {search.transitions} requests; a new supervisor went on from {recovered} stores")
    assert search.states > more_than


class OneOwnerCheck(CommitLog):
    """Does not look for a newer lease after its commit."""

    checked = False

    def check_owner(self, epoch: int) -> None:
        if not self.checked:
            super().check_owner(epoch)
        self.checked = True


class ListBeforeLease(CommitLog):
    def begin_epoch(self, owner: str) -> Epoch:
        commits = self.chain()
        number = self._take_lease(owner)
        self._store.create(self._keys.base(number), _sealed({"commit": commits[0].key if commits else None}))
        return Epoch(number=number, commits=tuple(commits))


class AnyCommitCounts(CommitLog):
    def _epochs(self, steps: dict[int, dict[int, str]]) -> Iterator[tuple[int, int]]:
        return ((epoch, _NO_LIMIT) for epoch in sorted(steps, reverse=True))


class NoLastStep(CommitLog):
    """Follows the bases, but counts all that their epochs have committed."""

    def _epochs(self, steps: dict[int, dict[int, str]]) -> Iterator[tuple[int, int]]:
        return ((epoch, _NO_LIMIT) for epoch, _ in super()._epochs(steps))


class NamedLease(CommitLog):
    """Two supervisors of one run write the same lease, and each takes the other's for its own."""

    def __init__(self, store, keys, nonce, threads=1):
        super().__init__(store, keys, lambda: "", threads)


class LeaseByPut(CommitLog):
    def _take_lease(self, owner: str) -> int:
        number = self._highest(self._keys.leases) + 1
        self._store.put(self._keys.lease(number), owner.encode())
        return number


class BasesBeforeCommits(CommitLog):
    listed: tuple[int, ...] | None = None

    def _counted(self) -> list[str]:
        self.listed = None
        self.listed = tuple(self._numbers(self._keys.bases))
        return super()._counted()

    def _numbers(self, prefix: str) -> list[int]:
        known = self.listed if prefix == self._keys.bases else None
        return super()._numbers(prefix) if known is None else list(known)


class CommitBeforeManifest(CommitLog):
    def commit(self, **values):
        commit, manifest, store = [], [], self._store

        class Turned:
            """The manifest waits until the commit is there."""

            get, list = store.get, store.list

            def put(self, key, data):
                manifest.append((key, data))

            def create(self, key, data):
                store.create(key, data)
                commit.append(key)
                store.put(*manifest.pop())

        self._store = Turned()
        return super().commit(**values)


MUTATIONS = [
    (OneOwnerCheck, OLD_AND_TWIN, "(b)"),
    (ListBeforeLease, OLD_AND_TWIN, "(b)"),
    (AnyCommitCounts, OLD_AND_TWIN, "(e)"),
    (NoLastStep, OLD_AND_TWIN, "(e)"),
    (NamedLease, OLD_AND_TWIN, "(c)"),
    (LeaseByPut, OLD_AND_TWIN, "(c)"),
    (BasesBeforeCommits, (*OLD_AND_TWIN, reader("R")), "(a)"),
    (CommitBeforeManifest, OLD_AND_TWIN, "(a)"),
]


@pytest.mark.parametrize("log, actors, broken", MUTATIONS, ids=lambda value: getattr(value, "__name__", None))
def test_without_a_protection_the_search_finds_the_fault(log, actors, broken):
    trace = Search(Scope(actors, log=log)).explore()
    print("\n".join(trace))
    assert trace and trace[-1].startswith(f"violated: {broken}")
    assert len(trace) > 5
