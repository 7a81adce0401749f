"""Batches that grow: whole ranks against a plain loop of torch, also offloaded and gone on with at another layout in the middle of it."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from ranks import Group, spec_of
from tiny_workload import Tiny

from orchestrator.data.loader import open_dataset, to_batch
from orchestrator.data.order import ids_at
from orchestrator.runtime.schedule import learning_rate
from orchestrator.runtime.seeding import seed_model
from orchestrator.spec import JobSpec, from_dict

BATCHES = [8, 16, 16, 16, 24, 24]
"""Of each step; two ranks accumulate 1, 2, 2, 2, 3, 3 micro batches."""
GROWING = {"training__batch_size_warmup": [[8, 8], [56, 16]], "training__gradient_clipping": 0.5}


def job(folder, workers, zero_stage, job_id="job", **changes):
    spec = spec_of(folder / "store", resources__num_workers=workers, parallelism__zero_stage=zero_stage, **GROWING, **changes)
    return Group(folder, workers, spec, job_id)


def plain_loop(group):
    """(loss, lr, norm, ids) by step, of one process without DeepSpeed."""
    spec = from_dict(JobSpec, group.spec)
    dataset = open_dataset(group.store, "tiny", group.of("prepared")[0]["dataset"], group.folder)
    workload = Tiny(spec)
    seed_model(spec.training.seed)
    model = workload.build_model(dataset)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": spec.optimizer.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=spec.optimizer.betas, eps=spec.optimizer.eps)
    rows, position = {}, 0
    for step, samples in enumerate(BATCHES, 1):
        ids = ids_at(position, samples, dataset.num_samples("train"), spec.training.seed)
        loss = workload.loss(model, to_batch(dataset.gather("train", ids)))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), spec.training.gradient_clipping)
        lr = learning_rate(spec.optimizer, spec.training.max_steps, step)
        for part in optimizer.param_groups:
            part["lr"] = lr
        optimizer.step()
        rows[step] = (loss.item(), lr, norm.item(), float(zlib.crc32(np.asarray(ids, dtype="<i8").tobytes())))
        position += samples
    return rows


def check(group, expected):
    found = group.history()
    for step, (loss, lr, norm, ids) in found.items():
        other = expected[step]
        assert (lr, ids) == (other[1], other[3]), step
        assert (loss, norm) == (pytest.approx(other[0], abs=1e-5), pytest.approx(other[2], abs=1e-5)), step
    samples = {message["step"]: message["values"]["samples"] for message in group.of("metrics")}
    assert samples == {step: sum(BATCHES[:step]) for step in found}
    return set(found)


@pytest.mark.slow
def test_growing_batches_train_as_a_plain_loop_and_go_on_anywhere(tmp_path):
    offloaded = job(tmp_path, 2, 2, parallelism__offload_optimizer="cpu").run()
    expected = plain_loop(offloaded)
    assert check(offloaded, expected) == {1, 2, 3, 4, 5, 6}
    half = next(ref.key for ref in offloaded.log.chain() if ref.step == 3)
    assert offloaded.log.load_manifest(offloaded.log.read(half)).job_scalars["position"] == 40
    assert check(job(tmp_path, 1, 0).run([half]), expected) == {4, 5, 6}
    again = job(tmp_path, 2, 2, parallelism__offload_optimizer="cpu").run([half])
    assert again.history() == {step: row for step, row in offloaded.history().items() if step > 3}
    assert check(job(tmp_path, 2, 3, "sharded").run(), expected) == {1, 2, 3, 4, 5, 6}
