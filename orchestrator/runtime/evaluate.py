"""Evaluation on all ranks: sums over samples, added over batches and ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from orchestrator.data.loader import Dataset, eval_batches
from orchestrator.errors import WorkloadError
from orchestrator.layout import Layout
from orchestrator.runtime.collective import broadcast_text
from orchestrator.runtime.engine import Batch, Engine
from orchestrator.runtime.seeding import undisturbed
from orchestrator.spec import JobSpec
from orchestrator.workload import Workload

SPLIT = "validation"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`values`: the workload's metrics. `sums`: what they were made from, over the whole split."""

    step: int
    values: dict[str, float]
    sums: dict[str, np.ndarray[Any, Any]]


def evaluate(
    engine: Engine, workload: Workload, dataset: Dataset, spec: JobSpec, step: int, tick: Callable[[], None] = lambda: None
) -> Evaluation:
    """The same result on every rank; training goes on as if it had not been. `tick` is called once per batch."""
    engine.state.average_buffers()
    was_training = engine.module.training
    engine.module.eval()
    with undisturbed(), torch.no_grad():
        sums = _sum_up(engine, workload, dataset, spec, tick)
    engine.module.train(was_training)
    return Evaluation(step=step, values=_metrics(workload, sums), sums=sums)


def _sum_up(engine: Engine, workload: Workload, dataset: Dataset, spec: JobSpec, tick: Callable[[], None]) -> dict[str, Any]:
    totals: dict[str, torch.Tensor] = {}
    for batch, counts in _rounds(dataset, spec, engine.layout):
        tick()
        found = engine.evaluate(workload.evaluate, batch)
        for name, value in found.items():
            value = _wide(value.detach().to(engine.device))
            totals[name] = totals.get(name, torch.zeros_like(value)) + (value if counts else torch.zeros_like(value))
    return _over_ranks(_known_to_all(totals, engine))


def _known_to_all(totals: Mapping[str, torch.Tensor], engine: Engine) -> dict[str, torch.Tensor]:
    """Sums of nothing for the ranks of a pipeline that got none, which are all but those of its last stage."""
    if engine.layout.pipeline_parallel_size == 1:
        return dict(totals)
    shapes = {name: (value.is_floating_point(), list(value.shape)) for name, value in totals.items()}
    told = json.loads(broadcast_text(json.dumps(shapes), engine.device, source=engine.layout.world_size - 1))
    return {
        name: totals.get(name, torch.zeros(shape, dtype=torch.float64 if fractions else torch.int64, device=engine.device))
        for name, (fractions, shape) in told.items()
    }


def _rounds(dataset: Dataset, spec: JobSpec, layout: Layout) -> Iterator[tuple[Batch, bool]]:
    """(batch, whether it counts). A rank without a batch computes rank 0's first one: to know the shapes of the sums, and, where a
    forward pass needs other ranks (ZeRO 3, experts that are dealt out), to keep step with them. Of a tensor-parallel group only the
    first rank counts; the ranks of a sequence have the same batches, and each counts its positions."""
    share, shares = layout.data_parallel_rank(dist.get_rank()), layout.data_parallel_size
    counts = layout.tensor_parallel_rank(dist.get_rank()) == 0
    size, limit = spec.training.micro_batch_size, spec.training.eval_samples
    samples = min(limit or dataset.num_samples(SPLIT), dataset.num_samples(SPLIT))
    if not samples:
        raise WorkloadError(f"the data set has no samples in the split '{SPLIT}', so the model cannot be evaluated.")
    rounds, done = math.ceil(math.ceil(samples / size) / shares), 0
    for batch in eval_batches(dataset, SPLIT, share, shares, size, limit):
        done += 1
        yield batch, counts
    together = layout.zero_stage == 3 or layout.expert_parallel_size > 1
    for _ in range(rounds - done if together or not done else 0):
        yield next(eval_batches(dataset, SPLIT, 0, shares, size, limit)), False


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value.long()


def _over_ranks(totals: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """One all-reduce for each of the two number formats, names in order."""
    summed: dict[str, Any] = {}
    for dtype in (torch.float64, torch.int64):
        names = sorted(name for name, value in totals.items() if value.dtype is dtype)
        if names:
            line = torch.cat([totals[name].reshape(-1) for name in names])
            dist.all_reduce(line)
            parts = line.split([totals[name].numel() for name in names])
            summed |= {name: part.view(totals[name].shape).cpu().numpy() for name, part in zip(names, parts, strict=True)}
    return summed


def _metrics(workload: Workload, sums: Mapping[str, Any]) -> dict[str, float]:
    values = {name: float(value) for name, value in workload.metrics(sums).items()}
    if "loss" not in values:
        raise WorkloadError(f"metrics() must return `loss`; it returned {', '.join(sorted(values)) or 'nothing'}.")
    return values
