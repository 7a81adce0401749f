"""Damage to a job's checkpoints at rest is caught, and the job goes on from the newest that is whole."""

from __future__ import annotations

import json
import logging
import random
import re

import checkpoint_trials as trials
import pytest
from checkpoint_trials import KEYS

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.manifest import decode_index
from orchestrator.errors import CheckpointError, CorruptObject, StorageError
from orchestrator.paths import manifest_key
from orchestrator.storage import Fault, FaultyStore, MemoryStore

FLIPS, TRUNCATIONS = 40, 10
PARTS = ("segment", "manifest", "commit", "base", "segment", "index", "segment", "manifest", "commit", "lease")
NEWEST, BEFORE = (2, 3), (1, 2)


def three_commits(store):
    """Epoch 1 has committed steps 1 and 2, epoch 2 step 3; epoch 3 has begun."""
    log = CommitLog(store, KEYS)
    assert log.begin_epoch("a").number == 1
    trials.save(store, log, (1, 1))
    trials.save(store, log, BEFORE)
    log.begin_epoch("a")
    trials.save(store, log, NEWEST, world=3)
    log.begin_epoch("a")


def keys_of(part, keys, rng):
    """One of the keys that are this part of the newest checkpoint, or of the job."""
    found = {
        "segment": lambda key: f"{NEWEST[1]:012d}-" in key and "/seg-" in key,
        "index": lambda key: f"{NEWEST[1]:012d}-" in key and "/idx/" in key,
        "manifest": lambda key: key == manifest_key(KEYS.checkpoint(NEWEST[1], NEWEST[0], "u")),
        "commit": lambda key: key == KEYS.commit(*NEWEST),
        "base": lambda key: key.startswith(KEYS.bases),
        "lease": lambda key: key.startswith(KEYS.leases),
    }[part]
    return rng.choice(sorted(filter(found, keys)))


def test_flips_and_truncations_at_rest_are_caught_and_the_commit_before_is_used(store, caplog):
    """Segment, manifest and commit: the commit before. A base is made up for by the epochs before; leases and indexes are read no more."""
    three_commits(store)
    good, rng = trials.objects(store), random.Random(11)
    for trial in range(FLIPS + TRUNCATIONS):
        part = PARTS[trial % len(PARTS)]
        key = keys_of(part, good, rng)
        damaged = bytearray(good[key])
        if trial < FLIPS:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(damaged)) :]
        store.put(key, bytes(damaged))
        caplog.clear()
        log = CommitLog(store, KEYS)
        found = trials.restore_newest(store, log, log.begin_epoch("b").commits, world=1 + trial % 3)
        lost = part in ("segment", "manifest", "commit")
        assert trials.same(found, BEFORE if lost else NEWEST), (trial, key)
        suspects = [info.key for info in store.list(KEYS.suspects)]
        assert suspects == ([KEYS.suspect(*NEWEST)] if lost else []), (trial, key)
        if lost:
            assert key in json.loads(store.get(suspects[0]))["message"]
        if part == "base":
            assert any(key in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
        if part == "index" and trial >= FLIPS:
            with pytest.raises(CorruptObject, match=re.escape(key)):
                decode_index(bytes(damaged), key)
        trials.put_back(store, good)


class Recording:
    """`store`, and what its callers meant to write."""

    def __init__(self, store):
        self.url, self._store, self.meant = store.url, store, {}

    def put(self, key, data):
        self.meant[key] = bytes(data)
        self._store.put(key, data)

    def create(self, key, data):
        self.meant[key] = bytes(data)
        self._store.create(key, data)

    def __getattr__(self, name):
        return getattr(self._store, name)


@pytest.mark.parametrize("kind", ["flip_at_rest", "truncate_at_rest", "rival"])
def test_whatever_write_is_damaged_the_newest_whole_commit_is_found(kind):
    """Every write of two supervisors, one after the other; the job may end by it, the next one finds the newest whole commit."""
    course, number, struck = trials.Course(writers=2), 0, True
    while struck:
        number += 1
        inner = MemoryStore()
        faulty = FaultyStore(inner, [Fault(kind=kind, number=number)])
        recording, told = Recording(faulty), trials.Told()
        try:
            trials.live(course, recording, inner, told)
        except (StorageError, CheckpointError):
            assert faulty.struck
        whole = [commit for commit in commits_in(inner) if is_whole(inner, recording.meant, commit)]
        log = CommitLog(inner, KEYS)
        found = trials.restore_newest(inner, log, log.begin_epoch("after").commits)
        assert trials.same(found, max(whole, default=None)), faulty.struck
        assert not told.torn
        struck = faulty.struck or number < faulty.calls.total()
    assert number > 50


def commits_in(inner):
    names = (info.key.rsplit("/", 1)[1].removesuffix(".json") for info in inner.list(KEYS.commits))
    return [tuple(map(int, name.split("-"))) for name in names]


def is_whole(inner, meant, commit):
    prefix = KEYS.checkpoint(commit[1], commit[0], "u")
    read = [key for key in meant if key.startswith(prefix) and "/idx/" not in key] + [KEYS.commit(*commit)]
    return manifest_key(prefix) in read and all(inner.get(key) == meant[key] for key in read)
