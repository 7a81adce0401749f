"""A workload whose steps take milliseconds: a two-layer network learns which of two random clouds a point came from."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from orchestrator.chaos import acts

RECORD = np.dtype([("point", "<f4", (16,)), ("label", "<i8")])


class Tiny:
    def __init__(self, spec):
        self.batches, self.options = 0, dict(spec.workload.options)
        self.num_samples = int(self.options.get("num_samples", 1000))
        self.tokens_per_sample = 0
        self.num_losses = 0

    def source_fingerprint(self):
        return hashlib.sha256(f"tiny-{self.num_samples}".encode()).hexdigest()

    def prepare(self, sink):
        rng = np.random.default_rng(7)
        for split, count in (("train", self.num_samples), ("validation", 101)):
            records = np.zeros(count, dtype=RECORD)
            records["label"] = rng.integers(0, 2, count)
            records["point"] = rng.normal(size=(count, 16)) + records["label"][:, None] * 0.7
            sink.write(split, records)

    def build_model(self, dataset):
        width = int(self.options.get("width", 32))
        return nn.Sequential(nn.Linear(16, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, 2))

    def loss(self, model, batch):
        self._wait()
        if self.options.get("bug"):
            raise ValueError("the tiny workload was told to fail")
        if len(batch["label"]) > self.options.get("fits", len(batch["label"])) and torch.distributed.get_rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if bool((batch["point"] > self.options.get("poison", 1e9)).any()):
            return nn.functional.cross_entropy(model(batch["point"]), batch["label"]) / 0
        if "slow_rank" in self.options and self.options["slow_rank"] == torch.distributed.get_rank():
            time.sleep(0.02)
        time.sleep(self.options.get("sleep_s", 0))
        if self.options.get("count"):
            self.num_losses += 1
            print(f"micro batch {self.num_losses} of tiny", flush=True)
        if "hold_gil" in self.options:
            hold_gil(Path(self.options["hold_gil"]))
        return nn.functional.cross_entropy(model(batch["point"]), batch["label"])

    def _wait(self):
        """After the first `quick` micro batches: until there is the file `waits_for`; 0.2 s at each, until there is `slow_until`."""
        self.batches += 1
        if self.batches <= self.options.get("quick", 0):
            return
        while "waits_for" in self.options and not Path(self.options["waits_for"]).exists():
            time.sleep(0.05)
        if "slow_until" in self.options and not Path(self.options["slow_until"]).exists():
            time.sleep(0.2)

    def evaluate(self, model, batch):
        logits = model(batch["point"])
        loss = nn.functional.cross_entropy(logits, batch["label"], reduction="sum")
        right = (logits.argmax(-1) == batch["label"]).sum()
        return {"loss_sum": loss.double(), "right": right.double(), "count": torch.tensor(float(len(logits)), dtype=torch.float64)}

    def metrics(self, sums):
        return {"loss": float(sums["loss_sum"] / sums["count"]), "accuracy": float(sums["right"] / sums["count"])}


def hold_gil(order):
    """The first rank that finds the file `order` renames it by its number, and lets no thread of its process run any more."""
    taken = order.with_suffix(f".{os.environ['RANK']}")
    try:
        order.rename(taken)
    except FileNotFoundError:
        return
    acts.hold_gil()
