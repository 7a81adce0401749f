"""Small checkpoints in a store, with a frozen tensor that all of them share with the first."""

from __future__ import annotations

import numpy as np
import torch

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.manifest import Segment, TensorSlice, WriterIndex, crc64, encode
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.plan import Box
from orchestrator.checkpoints.restore import restore
from orchestrator.paths import JobKeys, index_key, segment_key

KEYS = JobKeys("job")
FROZEN = np.arange(6, dtype=np.float32)


def weights(step):
    return np.full(4, step, dtype=np.float32)


def put_segment(store, key, array):
    content = array.tobytes()
    store.put(key, content)
    return Segment(key=key, num_bytes=len(content), block_crcs=(crc64(content),))


def part(name, array, segment, role="param"):
    shape = array.shape
    return TensorSlice(
        name=name, role=role, dtype=array.dtype.name, global_shape=shape, boxes=(Box((0,) * len(shape), shape),), segment=segment.key,
        offset=0, num_bytes=array.nbytes,
    )  # fmt: skip


def write(store, epoch, step, frozen=None, ulid="u"):
    """An unfinished save: everything but the commit. `frozen`: the segment of the frozen tensor in another checkpoint."""
    prefix = KEYS.checkpoint(step, epoch, ulid)
    own = put_segment(store, segment_key(prefix, 0, 0), weights(step))
    frozen = frozen or put_segment(store, segment_key(prefix, 0, 1), FROZEN)
    index = WriterIndex(writer=0, segments=(own, frozen), slices=(part("w", weights(step), own), part("frozen", FROZEN, frozen)))
    store.put(index_key(prefix, 0), encode(index))
    return prefix, frozen


def commit(store, epoch, step, prefix, time_s=0.0, value=None):
    scalars = {"step": step, "evaluated": None if value is None else {"metric": "loss", "value": value}}
    return CommitLog(store, KEYS).commit(
        epoch=epoch, step=step, prefix=prefix, num_writers=1, world_size=1, zero_stage=0, job_scalars=scalars, time_s=time_s
    )  # fmt: skip


def save(store, epoch, step, frozen=None, time_s=0.0, value=None, ulid="u"):
    """Returns the commit and the segment of the frozen tensor."""
    prefix, frozen = write(store, epoch, step, frozen, ulid)
    return commit(store, epoch, step, prefix, time_s, value), frozen


def begin(store):
    return CommitLog(store, KEYS).begin_epoch("test").number


def load(store, ref):
    """Restores a commit, and checks every number."""
    read = {"w": torch.zeros(4), "frozen": torch.zeros(6)}
    wanted = [StatePiece(name=name, role="param", global_shape=data.shape, start=0, data=data) for name, data in read.items()]
    restore(store, CommitLog(store, KEYS).load_manifest(ref), wanted)
    assert np.array_equal(read["w"].numpy(), weights(ref.step)) and np.array_equal(read["frozen"].numpy(), FROZEN)


def steps(store):
    return [ref.step for ref in CommitLog(store, KEYS).chain()]


def prefixes(store):
    """Steps of the checkpoints of which anything is in the store."""
    return sorted({int(info.key.removeprefix(KEYS.checkpoints)[:12]) for info in store.list(KEYS.checkpoints)})


def names(store, prefix):
    return [info.key for info in store.list(prefix)]
