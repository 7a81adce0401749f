"""A port that is kept is given to nobody else, and is there for the server that it is kept for."""

from __future__ import annotations

import datetime
import socket

import pytest
import torch.distributed as dist
from patience import LIMIT_S

from orchestrator.ports import hold_port

HOST = "127.0.0.1"
LIMIT = datetime.timedelta(seconds=LIMIT_S)


def port_of(held: socket.socket) -> int:
    return int(held.getsockname()[1])


def test_torchs_store_listens_at_a_port_that_is_kept() -> None:
    with hold_port(HOST) as held:
        store = dist.TCPStore(HOST, port_of(held), is_master=True, timeout=LIMIT)
        store.set("key", "value")
        assert dist.TCPStore(HOST, port_of(held), timeout=LIMIT).get("key") == b"value"


def test_a_port_that_is_kept_refuses_until_its_server_listens() -> None:
    with hold_port(HOST) as held, pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port_of(held)), timeout=LIMIT_S)


def test_a_port_that_is_kept_is_not_taken_by_one_that_looks_for_a_free_one() -> None:
    with hold_port(HOST) as held, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HOST, port_of(held)))


def test_two_that_are_kept_differ() -> None:
    with hold_port(HOST) as one, hold_port(HOST) as two:
        assert port_of(one) != port_of(two)
