"""Whole tensors out of checkpoints of any layout: read, compared, written as safetensors."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from checkpoint_writer import write_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.diff import Change, bytes_to_read, diff
from orchestrator.checkpoints.manifest import BLOCK_BYTES
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.plan import Box
from orchestrator.checkpoints.safetensors_files import INDEX, write_safetensors
from orchestrator.checkpoints.tensors import portions, read_tensors
from orchestrator.errors import CorruptObject, IncompatibleCheckpoint
from orchestrator.paths import JobKeys
from orchestrator.storage import FaultyStore, MemoryStore

KEYS = JobKeys("job")


def state(seed):
    draw = torch.Generator().manual_seed(seed)
    return {
        ("param", "w"): torch.randn(7, 6, generator=draw),
        ("param", "half"): torch.randn(9, generator=draw).to(torch.bfloat16),
        ("param", "scale"): torch.tensor(float(seed)),
        ("buffer", "seen"): torch.tensor([seed, 2, 3]),
        ("buffer", "mask"): torch.tensor([[True, False], [False, seed > 0]]),
        ("exp_avg", "w"): torch.randn(7, 6, generator=draw),
    }


def piece(key, tensor, start, end, block=None):
    role, name = key
    shape = tuple(tensor.shape)
    part = tensor if block is None else tensor[block.within(Box((0,) * tensor.dim(), shape))]
    data = part.reshape(-1)[start:end].clone()
    return StatePiece(name=name, role=role, global_shape=shape, start=start, data=data, block=block)


def cut(values):
    """Two writers: `w` by columns of two tensor-parallel ranks, all else by flat intervals."""
    found = ([], [])
    for key, tensor in values.items():
        count = tensor.numel()
        if key[1] == "w":
            for writer, (low, high) in enumerate(((0, 4), (4, 6))):
                found[writer].append(piece(key, tensor, 0, 7 * (high - low), Box((0, low), (7, high - low))))
        else:
            middle = count // 2 if count > 1 else count
            for writer, (start, end) in enumerate(((0, middle), (middle, count))):
                if start < end:
                    found[writer].append(piece(key, tensor, start, end))
    return found


def commit(store, step, pieces):
    log = CommitLog(store, KEYS)
    epoch, prefix = log.begin_epoch("a").number, KEYS.checkpoint(step, 1, "u")
    for writer, mine in enumerate(pieces):
        write_checkpoint(store, prefix, writer, mine, {})
    return log.load_manifest(
        log.commit(epoch=epoch, step=step, prefix=prefix, num_writers=len(pieces), world_size=2, zero_stage=1, job_scalars={})
    )  # fmt: skip


def test_every_tensor_is_read_as_it_was():
    store = MemoryStore()
    manifest = commit(store, 1, cut(state(1)))
    slices = manifest.tensors()
    read = read_tensors(store, manifest, slices, slices)
    for key, tensor in state(1).items():
        bits = tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor
        assert np.array_equal(read[key], bits.numpy()) and read[key].shape == tuple(tensor.shape), key


def test_what_is_larger_than_a_block_is_read_in_runs_and_only_what_is_asked_for():
    store = FaultyStore(MemoryStore())
    count = BLOCK_BYTES // 4
    values = {("param", name): torch.arange(size) + n for n, (name, size) in enumerate((("a", 8), ("b", count), ("c", 8)))}
    manifest = commit(store, 1, [[piece(key, tensor.float(), 0, tensor.numel()) for key, tensor in values.items()]])
    slices = manifest.tensors()
    for key, tensor in values.items():
        assert np.array_equal(read_tensors(store, manifest, slices, [key])[key], tensor.float().numpy())
    assert store.calls["read_into"] == 3


def test_portions_hold_what_fits_in_the_order_of_the_store():
    manifest = commit(MemoryStore(), 1, cut(state(1)))
    found = list(portions(manifest.tensors(), 100))
    assert found[1] == [("param", "half"), ("param", "scale"), ("buffer", "seen"), ("buffer", "mask")]
    assert sorted(key for portion in found for key in portion) == sorted(state(1)) and len(found) == 3
    assert [len(portion) for portion in portions(manifest.tensors(), 1)] == [1] * 6
    assert list(portions({})) == []


def test_a_damaged_block_never_becomes_a_tensor():
    store = MemoryStore()
    manifest = commit(store, 1, cut(state(1)))
    key = manifest.segments[1].key
    store.put(key, store.get(key)[:-1] + b"\x01")
    with pytest.raises(CorruptObject, match=f"'{key}' block 0 is damaged"):
        read_tensors(store, manifest, manifest.tensors(), manifest.tensors())


# diff


def test_a_difference_says_what_changed_and_how_much():
    store = MemoryStore()
    before = state(0)
    after = {key: tensor.clone() for key, tensor in before.items()}
    after["param", "w"][3, 4] += 0.5
    after["param", "half"][2] = float("nan")
    after["buffer", "seen"] = torch.tensor([5, 2, 3, 4])
    after["param", "new"] = torch.zeros(2)
    del after["buffer", "mask"]
    one, other = commit(store, 1, cut(before)), commit(store, 2, cut(after))
    heard = []
    found = {(row.role, row.name): row for row in diff(store, one, other, heard.append)}
    assert {key: row.change for key, row in found.items()} == {
        ("param", "w"): Change.DIFFERS, ("param", "half"): Change.DIFFERS, ("param", "scale"): Change.EQUAL, ("exp_avg", "w"): Change.EQUAL,
        ("buffer", "seen"): Change.RETYPED, ("buffer", "mask"): Change.REMOVED, ("param", "new"): Change.ADDED,
    }  # fmt: skip
    row = found["param", "w"]
    gap, norm = (after["param", "w"] - before["param", "w"]).double(), before["param", "w"].double().norm()
    assert row.max_abs == float(gap.abs().max()) and math.isclose(row.relative_norm, float(gap.norm() / norm), rel_tol=1e-12)
    assert math.isnan(found["param", "half"].max_abs) and math.isnan(found["param", "half"].relative_norm)
    assert (found["buffer", "seen"].before, found["buffer", "seen"].after) == ("int64[3]", "int64[4]")
    assert sum(heard) == bytes_to_read(one, other) == 2 * (7 * 6 * 4 * 2 + 9 * 2 + 4)


def test_bfloat16_is_compared_as_numbers_and_zero_as_a_base_is_infinitely_less():
    store = MemoryStore()
    one = {("param", "h"): torch.tensor([1.0, -2.0]).to(torch.bfloat16), ("param", "z"): torch.zeros(2)}
    other = {("param", "h"): torch.tensor([1.5, -2.0]).to(torch.bfloat16), ("param", "z"): torch.tensor([0.0, 2.0])}
    found = {row.name: row for row in diff(store, commit(store, 1, cut(one)), commit(store, 2, cut(other)))}
    assert found["h"].max_abs == 0.5 and math.isclose(found["h"].relative_norm, 0.5 / math.sqrt(5))
    assert (found["z"].max_abs, found["z"].relative_norm) == (2.0, math.inf)


def test_what_lies_in_one_place_is_equal_without_being_read():
    store = FaultyStore(MemoryStore())
    manifest = commit(store, 1, cut(state(1)))
    assert {row.change for row in diff(store, manifest, manifest)} == {Change.EQUAL}
    assert store.calls["read_into"] == 0


# safetensors


def test_weights_and_buffers_become_files_that_safetensors_reads(tmp_path):
    store = MemoryStore()
    manifest = commit(store, 1, cut(state(1)))
    heard = []
    files = write_safetensors(store, manifest, tmp_path, heard.append, file_bytes=200)
    assert [path.name for path in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    expected = {name: tensor for (role, name), tensor in state(1).items() if role != "exp_avg"}
    read = {}
    for path in files[:-1]:
        content = load_file(path)
        assert {index["weight_map"][name] for name in content} == {path.name}
        with safe_open(path, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        read |= content
    assert read.keys() == expected.keys() and all(torch.equal(read[name], tensor) for name, tensor in expected.items())
    assert all(read[name].dtype is tensor.dtype for name, tensor in expected.items())
    assert index["metadata"]["total_size"] == sum(heard) == sum(t.numel() * t.element_size() for t in expected.values())


def test_a_type_that_the_format_lacks_is_refused(tmp_path):
    store = MemoryStore()
    manifest = commit(store, 1, [[piece(("param", "z"), torch.zeros(2, dtype=torch.complex64), 0, 2)]])
    with pytest.raises(IncompatibleCheckpoint, match="param of z is complex64, which safetensors lacks"):
        write_safetensors(store, manifest, tmp_path)
