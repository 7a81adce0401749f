"""A node's staged state is copied to its peer while the rank goes on, and stored from there if the node is lost. Real slabs, no Ray."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from patience import LIMIT_S, wait_until

from orchestrator.checkpoints import peer_copies
from orchestrator.checkpoints import slab as slabs
from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.manifest import crc64
from orchestrator.checkpoints.near import NearStore
from orchestrator.checkpoints.peer_copies import Answer, CopyId, PeerCopies
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.restore import restore
from orchestrator.checkpoints.slab import read_staged, remove_slabs, slabs_of
from orchestrator.checkpoints.stage import StagingRing
from orchestrator.errors import CorruptObject
from orchestrator.paths import JobKeys, segment_key
from orchestrator.storage import FaultyStore, MemoryStore
from orchestrator.supervision import peer_copier
from orchestrator.supervision.peer_copier import PeerCopier
from orchestrator.supervision.uploader import Uploader

KEYS = JobKeys("job")
LOST, PEER = "orchestrator-job-1", "orchestrator-job-0"
FROZEN = {"frozen": [float(n) for n in range(9000)]}


def weights(step):
    return {"big": [float(step + n) for n in range(10_000)], "a": [float(step)]}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(slabs, "SEGMENT_BYTES", 16384)
    monkeypatch.setattr(peer_copier, "CHUNK_BYTES", 10_000)


class Told(list):
    def __init__(self):
        self.changed = threading.Condition()

    def tell(self, message):
        with self.changed:
            self.append(message)
            self.changed.notify_all()

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self) >= count, LIMIT_S), self
        return self[count - 1]


class Watched:
    """A peer; `before(name, copy)` is called before each of its methods, `done` hears of each call of `complete` and of refusals."""

    def __init__(self, copies, before=lambda name, copy: None):
        self.copies, self.before, self.done, self.written = copies, before, Told(), []

    def open(self, copy, staged):
        self.before("open", copy)
        answer = self.copies.open(copy, staged)
        if answer is Answer.REFUSED:
            self.done.tell(answer)
        return answer

    def write(self, copy, start, data, crc):
        self.before("write", copy)
        self.written.append(copy)
        return self.copies.write(copy, start, data, crc)

    def complete(self, copy, constant, message):
        self.before("complete", copy)
        whole = self.copies.complete(copy, constant, message)
        self.done.tell((whole, message["step"]))
        return whole


class Nodes:
    """Node 1, whose one rank is writer 0 of the job, and node 0, its peer. They share a folder, but no names."""

    def __init__(self, folder, before=lambda name, copy: None, buffers=2):
        self.folder, self.store, self.epoch = folder, MemoryStore(), 1
        self.ring = StagingRing(folder, f"{LOST}-0", buffers)
        self.copies = PeerCopies(folder, PEER)
        self.peer = Watched(self.copies, before)
        self.warnings = []
        self.copier = PeerCopier(1, 0, lambda message, why: self.warnings.append(why))
        self.log = CommitLog(self.store, KEYS)
        self.begin()

    def begin(self):
        self.epoch = self.log.begin_epoch("test").number
        self.copies.begin(self.epoch)
        self.copier.begin(self.epoch, self.peer, 1)

    def stage(self, step, frozen=(), values=None):
        prefix = KEYS.checkpoint(step, self.epoch, f"u{step}")
        path = []
        self.ring.stage(
            pieces(values or weights(step)), lambda: pieces(dict(frozen)), lambda: None, path.append, job_id="job", epoch=self.epoch,
            step=step, prefix=prefix, writer=0, scalars={"s": step},
        )  # fmt: skip
        self.ring.finish()
        told = {"type": "staged", "rank": 0, "writer": 0, "epoch": self.epoch, "step": step}
        return {**told, "checkpoint": prefix, "slab": str(path[0])}

    def copy(self, step, frozen=()):
        message, before = self.stage(step, frozen), len(self.peer.done)
        self.copier.take(message)
        assert self.peer.done.wait(before + 1) == (True, step)
        return message

    def upload(self, stem, messages, store=None):
        told = Told()
        uploader = Uploader(self.store if store is None else store, self.folder, stem, told.tell)
        for message in messages:
            uploader.take(message)
        assert not messages or told.wait(len(messages))
        assert all(message["type"] == "saved" for message in told), told

    def lose(self, *messages):
        """Node 1 is gone with its slabs; what the peer has of `messages` is stored by it."""
        remove_slabs(self.folder, LOST)
        adopted = self.copies.adopt(1, {(0, message["checkpoint"]) for message in messages})
        self.upload(PEER, adopted)
        return [message["step"] for message in adopted]

    def read(self, message, like, store=None):
        ref = self.log.commit(
            epoch=self.epoch, step=message["step"], prefix=message["checkpoint"], num_writers=1, world_size=1, zero_stage=0, job_scalars={}
        )
        wanted = pieces({name: [0.0] * len(values) for name, values in like.items()})
        restore(self.store if store is None else store, self.log.load_manifest(ref), wanted)
        return {one.name: one.data.tolist() for one in wanted}


def pieces(values):
    return [
        StatePiece(name=name, role="param", global_shape=(len(numbers),), start=0, data=torch.tensor(numbers))
        for name, numbers in values.items()
    ]


def content(store):
    return {info.key: store.get(info.key) for info in store.list("")}


def test_what_a_lost_node_had_staged_is_stored_by_its_peer_and_read_from_there(tmp_path):
    nodes = Nodes(tmp_path)
    first, second = nodes.copy(10), nodes.copy(20)
    assert nodes.lose(first, second) == [10, 20]
    counted = FaultyStore(nodes.store)
    near = NearStore(counted, tmp_path, PEER)
    assert nodes.read(second, weights(20), near) == weights(20)
    assert counted.calls["read_into"] == 0 < near.near_bytes
    assert nodes.log.load_manifest(nodes.log.chain()[0]).segments
    remove_slabs(tmp_path, PEER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stored", [0, 1, 2])
def test_both_nodes_would_store_the_same_bytes_under_the_same_keys(tmp_path, stored):
    """Also of what never changes, wherever the lost node had put it before it was lost."""
    nodes = Nodes(tmp_path)
    messages = [nodes.copy(10, FROZEN), nodes.copy(20, FROZEN)]
    calm = MemoryStore()
    for path in slabs_of(tmp_path, LOST):
        (tmp_path / path.name.replace(LOST, "calm")).write_bytes(path.read_bytes())
        (tmp_path / path.name.replace(LOST, "calm")).with_suffix(".json").write_text(
            path.with_suffix(".json").read_text().replace(LOST, "calm")
        )
    nodes.upload("calm", [{**message, "slab": message["slab"].replace(LOST, "calm")} for message in messages], calm)
    nodes.upload(LOST, messages[:stored])
    assert nodes.lose(*messages[stored:]) == [10, 20][stored:]
    assert {key: data for key, data in content(nodes.store).items() if "/ckpt/" in key} == content(calm)
    assert nodes.read(messages[1], {**weights(20), **FROZEN}) == {**weights(20), **FROZEN}


def test_what_never_changes_is_copied_once_and_stored_anew_where_its_first_checkpoint_has_no_copy(tmp_path):
    nodes = Nodes(tmp_path, buffers=3)
    nodes.copies.begin(0)  # the peer has not begun yet
    first = nodes.stage(10, FROZEN)
    nodes.copier.take(first)
    assert nodes.peer.done.wait(1) is Answer.REFUSED
    nodes.copies.begin(nodes.epoch)
    second, third = nodes.copy(20, FROZEN), nodes.copy(30, FROZEN)
    assert sum(copy.constant for copy in nodes.peer.written) == 4  # 36 kB in chunks of 10 kB
    assert nodes.lose(first, second, third) == [20, 30]
    for message in (second, third):
        assert nodes.read(message, {**weights(message["step"]), **FROZEN}) == {**weights(message["step"]), **FROZEN}


def test_a_copy_that_its_rank_overtakes_is_never_whole_and_the_one_before_stays(tmp_path):
    nodes = Nodes(tmp_path, buffers=1)
    first = nodes.copy(10)
    nodes.upload(LOST, [first])
    second = nodes.stage(20)
    nodes.upload(LOST, [second])  # its slab is free before it was copied
    later = []

    def overtake(name, copy):
        if copy.checkpoint == second["checkpoint"] and name == "write" and not later:
            later.append(nodes.stage(30))

    nodes.peer.before = overtake
    nodes.copier.take(second)
    nodes.copier.take(wait_until(lambda: later)[0])
    assert nodes.peer.done.wait(2) == (True, 30)
    held = {read_staged(path).step for path in slabs_of(tmp_path, PEER)}
    assert held == {10, 30}
    assert nodes.lose(second, later[0]) == [30]
    assert nodes.read(later[0], weights(30)) == weights(30)


def test_of_steps_that_wait_only_the_newest_is_copied(tmp_path):
    goes_on, began = threading.Event(), threading.Event()

    def hold(name, copy):
        began.set()
        assert goes_on.wait(LIMIT_S)

    nodes = Nodes(tmp_path, hold, buffers=3)
    nodes.copier.take(nodes.stage(10))
    assert began.wait(LIMIT_S)
    for step in (20, 30):
        nodes.copier.take(nodes.stage(step))
    goes_on.set()
    assert [nodes.peer.done.wait(number) for number in (1, 2)] == [(True, 10), (True, 30)]
    assert len(slabs_of(tmp_path, PEER)) == 2


def test_copies_of_older_epochs_are_not_adopted_and_are_read_until_newer_ones_come(tmp_path):
    nodes = Nodes(tmp_path, buffers=3)
    old = nodes.copy(10)
    nodes.begin()
    assert nodes.copies.adopt(1, {(0, old["checkpoint"])}) == []
    assert NearStore(nodes.store, tmp_path, PEER).near(segment_key(old["checkpoint"], 0, 0))
    nodes.begin()
    steps = [nodes.copy(step)["step"] for step in (20, 30)]
    assert {read_staged(path).step for path in slabs_of(tmp_path, PEER)} == set(steps)


def test_a_twin_of_a_lost_node_writes_nothing_any_more(tmp_path):
    nodes = Nodes(tmp_path)
    message = nodes.copy(10)
    nodes.copies.adopt(1, {(0, message["checkpoint"])})
    nodes.copier.take(nodes.stage(20))
    assert nodes.peer.done.wait(2) is Answer.REFUSED
    staged = read_staged(slabs_of(tmp_path, f"{LOST}-0")[0])
    copy = CopyId(owner=1, epoch=nodes.epoch, writer=0, checkpoint=message["checkpoint"])
    assert not nodes.copies.write(copy, 0, np.ones(4, np.uint8), crc64(np.ones(4, np.uint8).data))
    nodes.begin()  # the lost node's agent has not heard of it
    assert nodes.copies.open(copy, staged) is Answer.REFUSED
    assert not nodes.warnings


def test_bytes_that_come_damaged_or_do_not_come_make_no_copy(tmp_path):
    copies = PeerCopies(tmp_path, PEER)
    copies.begin(1)
    nodes = Nodes(tmp_path)
    message = nodes.stage(10)
    staged = read_staged(slabs_of(tmp_path, f"{LOST}-0")[0])
    copy, data = CopyId(owner=1, epoch=1, writer=0, checkpoint=staged.prefix), np.zeros(8, np.uint8)
    assert copies.open(copy, staged) is Answer.SEND
    with pytest.raises(CorruptObject, match="came damaged"):
        copies.write(copy, 0, data, 1)
    assert copies.write(copy, 0, data, crc64(data.data))
    assert not copies.complete(copy, None, message)  # 8 bytes are not all
    assert not copies.adopt(1, {(0, staged.prefix)})
    with pytest.raises(FileNotFoundError):
        read_staged(slabs_of(tmp_path, PEER)[0])


def test_a_peer_without_room_is_told_once_and_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(peer_copies, "LEAST_FREE_SHARE", 2.0)
    nodes = Nodes(tmp_path)
    for _ in range(2):
        nodes.copier.take(nodes.stage(10))
        wait_until(lambda: nodes.copier._peer is None)
        nodes.begin()
    (why,) = nodes.warnings
    assert why.startswith("MemoryError: a copy of 0.00 GB would leave less than 200% of")


def test_a_closed_peer_takes_nothing(tmp_path):
    nodes = Nodes(tmp_path)
    nodes.copies.close()
    nodes.copier.take(nodes.stage(10))
    assert nodes.peer.done.wait(1) is Answer.REFUSED
    assert not slabs_of(tmp_path, PEER)


