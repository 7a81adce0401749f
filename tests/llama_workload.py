"""A workload for every kind of parallelism: a Llama of a few thousand weights learns sequences that go on by threes."""

from __future__ import annotations

import hashlib
from types import MappingProxyType

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from workloads.layers import decoder_layers

RECORD = np.dtype([("tokens", "<i8", (9,))])


class Threes:
    tokens_per_sample = 8
    sequence_fields = MappingProxyType({"tokens": 1})

    def __init__(self, spec):
        self.heads = int(spec.workload.options.get("heads", 3))

    def source_fingerprint(self):
        return hashlib.sha256(b"threes").hexdigest()

    def prepare(self, sink):
        rng = np.random.default_rng(7)
        for split, count in (("train", 400), ("validation", 31)):
            records = np.zeros(count, dtype=RECORD)
            records["tokens"] = (rng.integers(0, 13, (count, 1)) + 3 * np.arange(9)) % 13
            sink.write(split, records)

    def build_model(self, dataset):
        shape = {"hidden_size": 8 * self.heads, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": self.heads}
        return LlamaForCausalLM(LlamaConfig(vocab_size=13, max_position_embeddings=8, use_cache=False, **shape))

    def initialise(self, model, name, module):
        model._init_weights(module)

    def loss(self, model, batch):
        return self._cross_entropy(model, batch, "mean")

    def evaluate(self, model, batch):
        return {"loss_sum": self._cross_entropy(model, batch, "sum").double(), "count": torch.tensor(batch["tokens"][:, 1:].numel())}

    def layers(self, model):
        return decoder_layers(model, lambda batch: batch["tokens"][:, :-1])

    def metrics(self, sums):
        return {"loss": float(sums["loss_sum"] / sums["count"]), "count": float(sums["count"])}

    def sample(self, model, dataset):
        tokens = torch.tensor([[1]])
        for _ in range(7):
            tokens = torch.cat([tokens, model(input_ids=tokens).logits[:, -1:].argmax(-1)], dim=1)
        return " ".join(map(str, tokens[0].tolist()))

    def _cross_entropy(self, model, batch, reduction):
        logits = model(input_ids=batch["tokens"][:, :-1]).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["tokens"][:, 1:].flatten(), reduction=reduction)
