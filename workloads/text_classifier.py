"""`text-classifier`: an encoder learns the class of a text.

Records are `tokens: uint16[length]` (uint32 where a given tokenizer has more than 65,536 tokens), padded at the end, and `label: int64`.
Where the texts come from stands in `texts`, how they become tokens in `tokens`.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from orchestrator.spec import JobSpec, from_dict
from orchestrator.workload import DatasetSink, DatasetView

from .encoder import Encoder, Pretrained, encoder_of
from .requirements import require
from .scores import figures, report_files, sums_of
from .texts import Text
from .tokens import Recipe, encode, inputs_of, kept_tokenizer, special_tokens

CLASSES_FILE = "classes.json"


@dataclass(frozen=True, kw_only=True)
class Targets:
    """`workload.options`."""

    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes; training only."""

    def __post_init__(self) -> None:
        ok = 0 <= self.label_smoothing < 1
        require(ok, "workload.options.label_smoothing", self.label_smoothing, "0 up to, but not, 1")


class TextClassifier:
    """The workload. `orchestrator.workload.Workload` tells what each method promises."""

    def __init__(self, spec: JobSpec) -> None:
        self.recipe: Recipe = from_dict(Recipe, spec.data.options, "data.options.")
        self.encoder: Encoder = encoder_of(spec.model.options)
        if isinstance(self.encoder, Pretrained):
            self.encoder.check_layout(spec)
        self.targets: Targets = from_dict(Targets, spec.workload.options, "workload.options.")
        self._pad = -1

    @property
    def tokens_per_sample(self) -> int:
        return self.recipe.length

    def source_fingerprint(self) -> str:
        return self.recipe.fingerprint("classes", self.encoder.tokenizer(), self.recipe.read())

    def prepare(self, sink: DatasetSink) -> None:
        texts = self.recipe.read()
        classes = self.recipe.classes_of(texts)
        sink.add_file(CLASSES_FILE, json.dumps(classes).encode())
        unlabelled = [text for text in texts if self.recipe.split_of(text) == "train"]
        tokenizer = self.recipe.tokenizer(self.encoder.tokenizer(), unlabelled, sink)
        for split, chosen in self.split(texts, classes).items():
            sink.progress(f"tokenizing {len(chosen):,} {split} texts of {len(classes)} classes")
            tokens = encode(tokenizer, [text.text for text in chosen], self.recipe.length)
            records = np.empty(len(chosen), dtype=[("tokens", tokens.dtype, tokens.shape[1:]), ("label", "<i8")])
            records["tokens"], records["label"] = tokens, [classes.index(text.label) for text in chosen]
            sink.write(split, records)

    def split(self, texts: list[Text], classes: list[str]) -> dict[str, list[Text]]:
        """The texts of `classes` by split. A validation text that is also a training text, word for word, is left out."""
        found: dict[str, list[Text]] = {"train": [], "validation": []}
        for text in texts:
            if text.label in classes:
                found[self.recipe.split_of(text)].append(text)
        seen = {text.text for text in found["train"]}
        found["validation"] = [text for text in found["validation"] if text.text not in seen]
        if self.recipe.labelled_per_class:
            found["train"] = _chosen(found["train"], self.recipe.labelled_per_class, self.recipe.split_seed)
        return found

    def build_model(self, dataset: DatasetView) -> nn.Module:
        tokenizer = kept_tokenizer(dataset)
        self._pad = special_tokens(tokenizer).pad
        return self.encoder.classifier(tokenizer.get_vocab_size(), self.recipe.length, len(_classes(dataset)))

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(self._logits(model, batch), batch["label"], label_smoothing=self.targets.label_smoothing)

    def evaluate(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return sums_of(self._logits(model, batch), batch["label"])

    def metrics(self, sums: Mapping[str, np.ndarray[Any, Any]]) -> Mapping[str, float]:
        return figures(sums)

    def report(self, sums: Mapping[str, np.ndarray[Any, Any]], dataset: DatasetView) -> Mapping[str, bytes]:
        return report_files(sums, _classes(dataset), "texts")

    def _logits(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        tokens, mask = inputs_of(batch["tokens"], self._pad)
        logits: torch.Tensor = model(input_ids=tokens, attention_mask=mask)
        return logits.float()


def _chosen(texts: list[Text], per_class: int, seed: int) -> list[Text]:
    """The first `per_class` texts of each class in the order of a hash, which no other text changes."""

    def place(text: Text) -> bytes:
        return hashlib.blake2b(f"{seed} {text.origin} {text.text}".encode(), digest_size=16).digest()

    by_class: defaultdict[str, list[Text]] = defaultdict(list)
    for text in sorted(texts, key=place):
        if len(by_class[text.label]) < per_class:
            by_class[text.label].append(text)
    return [text for _, members in sorted(by_class.items()) for text in members]


def _classes(dataset: DatasetView) -> list[str]:
    found: list[str] = json.loads(dataset.file(CLASSES_FILE))
    return found
