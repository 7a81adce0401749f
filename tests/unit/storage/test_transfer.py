"""How a large body is cut, and how long a failed attempt waits."""

from __future__ import annotations

import pytest

from orchestrator.storage.transfer import MAX_PARTS, parts_of, pause_s


@pytest.mark.parametrize("num_bytes", [1, 9, 10, 11, 25, 10 * MAX_PARTS, 10 * MAX_PARTS + 1, 37 * MAX_PARTS])
def test_parts_tile_the_body_and_are_never_too_many(num_bytes):
    body = memoryview(bytes(index % 251 for index in range(num_bytes)))
    parts = parts_of(body, 10)
    assert b"".join(part.data for part in parts) == body
    assert [part.number for part in parts] == list(range(1, len(parts) + 1)) and len(parts) <= MAX_PARTS
    assert all(body[part.start : part.start + len(part.data)] == part.data for part in parts)
    assert len(parts) == 1 or len(parts[0].data) >= 10


def test_parts_are_views_not_copies():
    body = bytearray(25)
    parts_of(memoryview(body), 10)[2].data[:] = b"12345"
    assert body.endswith(b"12345")


def test_pauses_double_up_to_twenty_seconds():
    assert [pause_s(attempt, 1.0) for attempt in (1, 2, 3, 4, 5, 6, 60)] == [1, 2, 4, 8, 16, 20, 20]
    assert pause_s(3, 0.0) == 0.0 and pause_s(3, 0.5) == 2.0
