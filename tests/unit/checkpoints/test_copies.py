"""Which blocks can be read straight into tensors."""

from __future__ import annotations

import torch

from orchestrator.checkpoints.copies import MAX_UNWANTED_BYTES, Copy, places_of, whole_block
from orchestrator.checkpoints.plan import Box


def rows(low, high, columns=8):
    return Box((low, 0), (high - low, columns))


def copy_of(offset, source, target, common, data=None):
    data = torch.zeros(target.volume) if data is None else data
    return Copy(block=0, offset=offset, source=source, target=target, target_data=data, common=common, dtype=torch.float32)


def test_bytes_go_where_they_are_wanted_and_the_rest_elsewhere():
    first, second = torch.zeros(4 * 8), torch.zeros(2 * 8)
    copies = [copy_of(4096, rows(0, 2), rows(0, 2), rows(0, 2), second), copy_of(0, rows(0, 6), rows(1, 5), rows(2, 5), first)]
    places = places_of(copies, 4096 + 64 + 32)
    assert [(offset, len(memory)) for offset, memory in places] == [(2 * 32, 3 * 32), (4096, 64)]
    content = torch.arange((4096 + 64 + 32) // 4, dtype=torch.float32)
    source, at = memoryview(content.numpy()).cast("B"), 0
    for view in whole_block(places, source.nbytes):
        view[:] = source[at : at + len(view)]
        at += len(view)
    assert at == source.nbytes
    assert first.tolist() == [0.0] * 8 + list(range(16, 40)) and second.tolist() == list(range(1024, 1040))


def test_what_is_cut_converted_lies_elsewhere_or_is_wanted_twice_needs_a_copy():
    whole = rows(0, 4)
    columns = Box((0, 2), (4, 3))
    assert places_of([copy_of(0, whole, whole, whole)], 128)
    assert not places_of([copy_of(0, whole, columns, columns)], 128)
    assert not places_of([copy_of(0, columns, whole, columns)], 128)
    assert not places_of([copy_of(0, whole, whole, whole, torch.zeros(4 * 8, device="meta"))], 128)
    assert not places_of([copy_of(0, whole, whole, whole, torch.zeros(4 * 8, dtype=torch.bfloat16))], 128)
    assert not places_of([copy_of(0, whole, whole, whole, torch.zeros(32, 2)[:, 0])], 128)
    assert not places_of([copy_of(0, whole, whole, whole), copy_of(0, whole, rows(2, 3), rows(2, 3))], 128)


def test_a_block_of_which_little_is_wanted_is_not_read_so():
    assert places_of([copy_of(0, rows(0, 4), rows(0, 4), rows(0, 4))], 128 + MAX_UNWANTED_BYTES)
    assert not places_of([copy_of(0, rows(0, 4), rows(0, 4), rows(0, 4))], 129 + MAX_UNWANTED_BYTES)
