"""Memory in several places is filled like one, whatever the steps."""

from __future__ import annotations

import random

import pytest

from orchestrator.storage.scattered import Scattered


def places(rng, sizes):
    whole = bytearray(sum(sizes))
    found, start = [], 0
    for size in sizes:
        found.append(memoryview(whole)[start : start + size])
        start += size
    return whole, found


@pytest.mark.parametrize("seed", range(20))
def test_steps_of_any_length_fill_all_of_it_in_order(seed):
    rng = random.Random(seed)
    whole, views = places(rng, [rng.choice([0, 1, 3, 700]) for _ in range(rng.choice([1, 5, 1500]))])
    content = rng.randbytes(len(whole))
    target = Scattered(views)
    while target.missing_bytes:
        at = target.filled_bytes
        if rng.random() < 0.5:
            target.write(content[at : at + rng.randint(0, target.missing_bytes)])
            continue
        some = target.next(rng.randint(1, 2000))
        came = rng.randint(1, sum(map(len, some)))
        Scattered(some).write(content[at : at + came])
        target.advance(came)
    assert whole == content and target.filled_bytes == len(content) and target.next(1) == []


@pytest.mark.parametrize("part_bytes", [1, 7, 10, 25, 100])
def test_parts_are_the_same_memory(part_bytes):
    whole, views = places(random.Random(1), [10, 0, 3, 12])
    parts = Scattered(views).parts(part_bytes)
    assert [part.missing_bytes for part in parts[:-1]] == [part_bytes] * (len(parts) - 1)
    for number, part in enumerate(parts):
        part.write(bytes([number + 1]) * part.missing_bytes)
    assert whole == bytes(1 + index // part_bytes for index in range(25))


def test_more_than_there_is_room_for_is_refused_and_memory_of_any_type_is_taken():
    target = Scattered([memoryview(bytearray(16)).cast("q")])
    with pytest.raises(ValueError, match="17 bytes for 16"):
        target.write(bytes(17))
    target.write(bytes(16))
    assert not target.missing_bytes
