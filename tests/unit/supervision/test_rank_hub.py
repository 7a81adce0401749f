"""An agent's ranks when the warm process leaves: what it was asked for and had not begun with, another one does."""

from __future__ import annotations

import json
import queue
import socket
import threading

import pytest
from patience import LIMIT_S, wait_until

from orchestrator.errors import ClusterError
from orchestrator.supervision.rank_hub import Fork, RankHub


class Node:
    """Its warm processes, one after the other, as the ends of their connections."""

    def __init__(self, tmp_path, most=9):
        self.told, self.warm, self.most = queue.Queue(), [], most
        self.hub = RankHub(tmp_path / "s", self.connect, lambda messages: [self.told.put(message) for message in messages], lambda rank: {})

    def connect(self):
        if len(self.warm) == self.most:
            raise ClusterError("the warm process did not start")
        mine, its = socket.socketpair()
        its.settimeout(LIMIT_S)
        self.warm.append(its)
        return mine

    def start(self):
        self.hub.start(1, [Fork(rank=rank, task={}, env={}, log="") for rank in (0, 1)])

    def asked(self, warm):
        """Ranks that it was asked for."""
        self.wait(lambda: len(self.warm) > warm)
        lines = self.warm[warm].makefile()
        return [json.loads(lines.readline())["rank"] for _ in range(2)]

    def say(self, warm, **event):
        self.warm[warm].sendall(json.dumps(event).encode() + b"\n")

    def ends(self):
        found = [self.told.get(timeout=LIMIT_S) for _ in range(2)]
        return [(message["rank"], message["signal"], message.get("note", "")) for message in found]

    @staticmethod
    def wait(condition):
        wait_until(condition)


def test_a_hub_that_hears_nothing_says_that_it_lives(tmp_path):
    delivered = queue.Queue()
    ends = socket.socketpair()
    hub = RankHub(tmp_path / "s", lambda: ends[0], delivered.put, lambda rank: {}, beat_s=0.01)
    assert [delivered.get(timeout=LIMIT_S) for _ in range(3)] == [[], [], []]
    hub.start(1, [Fork(rank=0, task={}, env={}, log="")])
    ends[1].sendall(json.dumps({"op": "exit", "rank": 0, "code": 0, "signal": 9, "pid": 7}).encode() + b"\n")
    while not (messages := delivered.get(timeout=LIMIT_S)):
        continue
    assert [message["type"] for message in messages] == ["exit"]


LOST = [(0, 9, "the warm process ended"), (1, 9, "the warm process ended")]


def test_ranks_that_were_not_begun_with_are_asked_of_the_next_one(tmp_path):
    node = Node(tmp_path)
    node.start()
    node.warm[0].close()  # with the requests unread
    assert node.asked(1) == [0, 1]
    for rank in (0, 1):
        node.say(1, op="started", rank=rank, pid=100 + rank)
    node.wait(lambda: node.hub.pids() == {0: 100, 1: 101})
    assert node.told.empty()


def test_one_that_left_between_two_lives_of_the_ranks_is_replaced(tmp_path):
    node = Node(tmp_path)
    node.warm[0].close()
    node.wait(lambda: node.hub._warm is None)
    node.start()
    assert node.asked(1) == [0, 1]


@pytest.mark.parametrize("event", [{"op": "started", "pid": 7}, {"op": "exit", "code": 0, "signal": 9, "pid": 7}])
def test_ranks_that_were_begun_with_die_with_it(tmp_path, event):
    node = Node(tmp_path)
    node.start()
    node.say(0, rank=0, **event)
    node.wait(lambda: node.hub._living.answered)
    node.warm[0].close()
    assert [(rank, signal) for rank, signal, _ in node.ends()] == [(0, 9), (1, 9)]
    assert len(node.warm) == 1


def test_the_second_that_leaves_without_a_word_is_the_end_of_the_ranks(tmp_path):
    node = Node(tmp_path)
    node.start()
    node.warm[0].close()
    node.asked(1)
    node.warm[1].close()
    assert node.ends() == LOST and len(node.warm) == 2


def test_where_no_other_one_starts_the_ranks_are_lost(tmp_path):
    node = Node(tmp_path, most=1)
    node.start()
    node.warm[0].close()
    assert node.ends() == LOST


def test_ranks_that_are_to_be_killed_are_not_asked_for_again(tmp_path):
    node = Node(tmp_path)
    node.start()
    killing = threading.Thread(target=node.hub.kill)
    killing.start()
    lines = node.warm[0].makefile()
    while json.loads(lines.readline())["op"] != "kill":
        continue
    lines.close()
    node.warm[0].close()
    assert node.ends() == LOST and len(node.warm) == 1
    killing.join(LIMIT_S)
    assert not killing.is_alive()
