"""A sink and view in memory, and specs of workloads."""

from __future__ import annotations

import numpy as np
import torch

from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec

_KINDS = {"i": np.int64, "u": np.int64, "f": np.float32}  # bytes stay bytes


def spec_of(entrypoint, model=(), data=(), options=()):
    return JobSpec(
        workload=WorkloadSpec(name="tested", entrypoint=entrypoint, options=dict(options)),
        model=ModelSpec(name="small", options=dict(model)),
        data=DataSpec(name="small", options=dict(data)),
        training=TrainingSpec(max_steps=1, global_batch_size=1, micro_batch_size=1),
    )


class Kept:
    content_hash = "none"

    def __init__(self):
        self.parts, self.files, self.said = {"train": [], "validation": []}, {}, []

    def write(self, split, records):
        self.parts[split].append(records)

    def add_file(self, name, content):
        self.files[name] = content

    def progress(self, message):
        self.said.append(message)

    def num_samples(self, split):
        return len(self.records(split))

    def file(self, name):
        return self.files[name]

    def records(self, split):
        return np.concatenate(self.parts[split])

    def batch(self, split="train", first=0, count=None):
        records = self.records(split)[first : None if count is None else first + count]
        return {name: torch.from_numpy(records[name].astype(_kind(records[name].dtype))) for name in records.dtype.names}


def _kind(stored):
    return np.uint8 if stored == np.uint8 else _KINDS[stored.kind]


def train(subject, model, kept, steps, batch_size, lr=1e-2):
    """A few steps over the training split, in order."""
    optimizer = torch.optim.AdamW((parameter for parameter in model.parameters() if parameter.requires_grad), lr=lr)
    total = kept.num_samples("train")
    for step in range(steps):
        subject.loss(model, kept.batch(first=step * batch_size % max(1, total - batch_size), count=batch_size)).backward()
        optimizer.step()
        optimizer.zero_grad()


def evaluated(subject, model, kept, batch_size=64):
    """The figures of the whole validation split, in parts."""
    model.eval()
    sums = {}
    with torch.no_grad():
        for first in range(0, kept.num_samples("validation"), batch_size):
            for name, value in subject.evaluate(model, kept.batch("validation", first, batch_size)).items():
                sums[name] = sums.get(name, 0) + value
    model.train()
    return subject.metrics({name: value.numpy() for name, value in sums.items()})
