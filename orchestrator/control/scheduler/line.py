"""The jobs that wait, in blocks: those that nothing but their ids and times tells apart stand together, and are looked at once for all.

Thousands of jobs wait through many plans, in which few come and few go. `Line` is kept from plan to plan with what else is derived from a
cluster, so that a plan touches those that have come and gone, not all. What it holds follows from the queue alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from orchestrator.control.scheduler.model import Job

_TURN = attrgetter("turn")
_MANY = 0.1
"""Where more of a block come and go than this part of it, it is put in order anew."""


class Block(NamedTuple):
    """Jobs that stand one after the other."""

    alike: str
    """`Job.alike` of all of them; empty: they differ."""
    jobs: list[Job]
    ids: list[str]

    def since(self, first: int) -> Block:
        """Those from that position on."""
        return Block(self.alike, self.jobs[first:], self.ids[first:]) if first else self


def block_of(jobs: Sequence[Job], alike: str = "") -> Block:
    return Block(alike, list(jobs), [job.id for job in jobs])


def merged(blocks: Sequence[Block]) -> Block:
    """One block of all, in their turn."""
    return blocks[0] if len(blocks) == 1 else block_of(sorted(chain.from_iterable(block.jobs for block in blocks), key=_TURN))


class Line:
    """Of one queue after the other: blocks of jobs that are alike, each in its turn, and the jobs that are like no other."""

    def __init__(self) -> None:
        self._known: dict[int, Job] = {}
        """By the identity of the object: a job that changes is another one."""
        self._blocks: dict[str, Block] = {}
        self._others: dict[int, Job] = {}

    def follow(self, queue: Sequence[Job]) -> None:
        """Be that of this queue."""
        known = self._known
        come = [job for job in queue if id(job) not in known]
        gone: list[Job] = []
        if len(known) + len(come) > len(queue):
            there = set(map(id, queue))
            gone = [job for key, job in known.items() if key not in there]
            for job in gone:
                del known[id(job)]
        for job in come:
            known[id(job)] = job
        changed: dict[str, tuple[list[Job], list[Job]]] = {}
        for which, jobs in enumerate((gone, come)):
            for job in jobs:
                if job.alike:
                    changed.setdefault(job.alike, ([], []))[which].append(job)
                elif which:
                    self._others[id(job)] = job
                else:
                    del self._others[id(job)]
        for alike, (less, more) in changed.items():
            self._change(alike, less, more)

    @property
    def blocks(self) -> list[Block]:
        """Not to be changed."""
        return list(self._blocks.values())

    @property
    def others(self) -> list[Job]:
        """In no order."""
        return list(self._others.values())

    def _change(self, alike: str, less: list[Job], more: list[Job]) -> None:
        known = self._blocks.pop(alike, None)
        jobs, ids = ([], []) if known is None else (known.jobs[:], known.ids[:])
        if len(less) + len(more) > _MANY * len(jobs):
            out = {id(job) for job in less}
            found = block_of(sorted(chain((job for job in jobs if id(job) not in out), more), key=_TURN), alike)
        else:
            for job in less:
                at = bisect_left(jobs, job.turn, key=_TURN)
                del jobs[at], ids[at]
            for job in more:
                at = bisect_left(jobs, job.turn, key=_TURN)
                jobs.insert(at, job)
                ids.insert(at, job.id)
            found = Block(alike, jobs, ids)
        if found.jobs:
            self._blocks[alike] = found


def without(blocks: Iterable[Block], started: Iterable[Job], kept: Iterable[Job], noted: Callable[[Job], Job]) -> list[Block]:
    """The blocks once the first of these have started. Those that are `kept` a place stand in their place as what is `noted` of them, and
    so do those that were kept one before."""
    gone, changed = {job.id for job in started}, {job.id for job in kept}
    touched = {job.alike for job in chain(started, kept)}
    found: list[Block] = []
    for block in blocks:
        if block.alike and block.alike not in touched:
            found.append(block)
            continue
        rest: list[Job] = []
        for job in block.jobs:
            if job.id in gone:
                continue
            if job.id in changed or job.cleared:
                new = noted(job)
                found += [block_of(rest, block.alike), block_of([new], new.alike)]
                rest = []
            else:
                rest.append(job)
        found.append(block_of(rest, block.alike))
    return [block for block in found if block.jobs]
