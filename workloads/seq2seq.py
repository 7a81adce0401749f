"""`seq2seq`: a T5-like encoder-decoder (Raffel et al. 2020) reads a Python function and writes the first line of its docstring.

The functions are those of the standard library that have a docstring. Records are `source: uint16[source_length]`, the function without
it, and `target: uint16[target_length]`, both cut to fit, ended by `</s>` and padded with 0. Training and validation functions are told
apart by a hash of their file's path.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration

from orchestrator.errors import DataError
from orchestrator.spec import JobSpec, from_dict, to_dict
from orchestrator.workload import DatasetSink, DatasetView

from .model_folder import TOKENIZER_FILE, save_folder
from .requirements import require
from .texts import files_below, require_folder, share_of
from .tokens import kept_tokenizer, train_tokenizer

PAD, END = 0, 1
_FORMAT = 1  # of the recipe: a change here makes every data set anew
Pair = tuple[str, str, str]
"""(path of the file, function without its docstring, first line of the docstring)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`data.options`."""

    root: str = ""
    """Folder with Python files; empty: the standard library of the running interpreter."""
    exclude: tuple[str, ...] = ("site-packages", "dist-packages", "__pycache__", "test")
    """Folder names that are passed over."""
    vocab_size: int = 2048
    source_length: int = 128
    """Tokens of a function; what is longer is cut."""
    target_length: int = 24
    """Tokens of a docstring's first line; what is longer is cut."""
    validation_share: float = 0.1
    """Share of the files that are held out."""

    def __post_init__(self) -> None:
        require(258 <= self.vocab_size <= 65_536, "data.options.vocab_size", self.vocab_size, "258 to 65536")
        for name in ("source_length", "target_length"):
            require(getattr(self, name) >= 2, f"data.options.{name}", getattr(self, name), "at least 2")
        require(0 < self.validation_share < 1, "data.options.validation_share", self.validation_share, "between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """`model.options`: T5 with relative positions, RMSNorm before each sublayer, ReLU, and one matrix of tokens."""

    hidden_size: int = 128
    head_size: int = 32
    intermediate_size: int = 512
    num_layers: int = 2
    """Of the encoder, and of the decoder."""
    num_heads: int = 4
    dropout: float = 0.0
    """With more than 0 the result depends on the number of workers."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "head_size", "intermediate_size", "num_layers", "num_heads"):
            require(getattr(self, name) >= 1, f"model.options.{name}", getattr(self, name), "at least 1")
        require(0 <= self.dropout < 1, "model.options.dropout", self.dropout, "0 up to, but not, 1")

    def build(self, vocab_size: int) -> nn.Module:
        config = T5Config(
            vocab_size=vocab_size,
            d_model=self.hidden_size,
            d_kv=self.head_size,
            d_ff=self.intermediate_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            dropout_rate=self.dropout,
            pad_token_id=PAD,
            eos_token_id=END,
            decoder_start_token_id=PAD,
            use_cache=False,
        )
        model: nn.Module = T5ForConditionalGeneration(config)
        return model


@dataclass(frozen=True, kw_only=True)
class Shown:
    """`workload.options`."""

    function: str = "def is_empty(self):\n    return len(self.items) == 0"
    """Shown at the end with the docstring that the model writes for it."""

    def __post_init__(self) -> None:
        require(self.function != "", "workload.options.function", "''", "a function's source code")


class Seq2Seq:
    """The workload. `orchestrator.workload.Workload` tells what each method promises."""

    def __init__(self, spec: JobSpec) -> None:
        self.recipe: Recipe = from_dict(Recipe, spec.data.options, "data.options.")
        self.architecture: Architecture = from_dict(Architecture, spec.model.options, "model.options.")
        self.shown: Shown = from_dict(Shown, spec.workload.options, "workload.options.")
        self.root = Path(self.recipe.root or sysconfig.get_paths()["stdlib"])

    @property
    def tokens_per_sample(self) -> int:
        return self.recipe.source_length + self.recipe.target_length

    def source_fingerprint(self) -> str:
        recipe = {**to_dict(self.recipe), "root": ""}  # the same functions elsewhere make the same data set
        digest = hashlib.blake2b(json.dumps([_FORMAT, tokenizers.__version__, recipe], sort_keys=True).encode(), digest_size=20)
        for name, content in self._files():
            digest.update(f"{len(name)} {len(content)} {name}".encode() + content)
        return digest.hexdigest()

    def prepare(self, sink: DatasetSink) -> None:
        splits: dict[str, list[Pair]] = {"train": [], "validation": []}
        for pair in self._pairs():
            splits["validation" if share_of(pair[0]) < self.recipe.validation_share else "train"].append(pair)
        sink.progress(f"training a tokenizer of {self.recipe.vocab_size} tokens on {len(splits['train']):,} functions")
        texts = (text for _, function, docstring in splits["train"] for text in (function, docstring))
        tokenizer = train_tokenizer(texts, self.recipe.vocab_size, special=("<pad>", "</s>"))
        sink.add_file(TOKENIZER_FILE, tokenizer.to_str().encode())
        lengths = {"source": self.recipe.source_length, "target": self.recipe.target_length}
        for split, pairs in splits.items():
            records = np.empty(len(pairs), dtype=[(name, "<u2", (length,)) for name, length in lengths.items()])
            for place, (name, length) in enumerate(lengths.items(), 1):
                records[name] = _encode(tokenizer, [pair[place] for pair in pairs], length)
            sink.write(split, records)

    def build_model(self, dataset: DatasetView) -> nn.Module:
        return self.architecture.build(kept_tokenizer(dataset).get_vocab_size())

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits, target = _predict(model, batch), batch["target"]
        losses = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
        real = target != PAD
        return ((losses * real).sum(1) / real.sum(1)).mean()

    def evaluate(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        logits, target = _predict(model, batch), batch["target"]
        loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum", ignore_index=PAD)
        right = (logits.argmax(-1) == target) & (target != PAD)
        return {"loss_sum": loss.double(), "right": right.sum(), "tokens": (target != PAD).sum()}

    def metrics(self, sums: Mapping[str, np.ndarray[Any, Any]]) -> Mapping[str, float]:
        """`loss` and `accuracy` are over the tokens of the targets, each predicted from those before it."""
        loss = float(sums["loss_sum"]) / float(sums["tokens"])
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": float(sums["right"]) / float(sums["tokens"])}

    def sample(self, model: nn.Module, dataset: DatasetView) -> str:
        """The function and the docstring that the model writes for it, always the likeliest token."""
        tokenizer, device = kept_tokenizer(dataset), next(model.parameters()).device
        source = torch.from_numpy(_encode(tokenizer, [self.shown.function], self.recipe.source_length).astype(np.int64)).to(device)
        written = torch.full((1, 1), PAD, device=device)
        for _ in range(self.recipe.target_length):
            logits = model(input_ids=source, attention_mask=(source != PAD).long(), decoder_input_ids=written).logits
            written = torch.cat([written, logits[:, -1:].argmax(-1)], dim=1)
        tokens = written[0, 1:].tolist()
        line = tokenizer.decode(tokens[: tokens.index(END)] if END in tokens else tokens).strip()
        return f'{self.shown.function}\n\n"""{line}"""'

    def export(self, model: nn.Module, dataset: DatasetView, folder: Path) -> None:
        save_folder(model, folder, kept_tokenizer(dataset))

    def _pairs(self) -> Iterator[Pair]:
        """Raises DataError where there are none."""
        found = False
        for name, content in self._files():
            for function, docstring in functions(content.decode("utf-8", errors="replace")):
                found = True
                yield name, function, docstring
        if not found:
            raise DataError(f"data.options.root={self.root} holds no Python functions with a docstring.")

    def _files(self) -> Iterator[tuple[str, bytes]]:
        """(path below the root, content), in the order of the paths."""
        require_folder(self.root, "data.options.root")
        for path in sorted(files_below(self.root, ".py", frozenset(self.recipe.exclude))):
            yield path.relative_to(self.root).as_posix(), path.read_bytes()


def functions(code: str) -> Iterator[tuple[str, str]]:
    """(function without its docstring, first line of the docstring) of all functions of a module; nothing from what is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of others' code: escapes that are none
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return  # the library has some files that are wrong on purpose
    lines = code.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(node.body) > 1:
            docstring = (ast.get_docstring(node) or "").strip().partition("\n")[0]
            if docstring:
                kept = [*lines[node.lineno - 1 : node.body[0].lineno - 1], *lines[node.body[0].end_lineno or 0 : node.end_lineno]]
                yield textwrap.dedent("\n".join(kept)), docstring


def _encode(tokenizer: Tokenizer, texts: list[str], length: int) -> np.ndarray[Any, Any]:
    """uint16[n, length]: each text cut to fit, END, padding."""
    tokens = np.full((len(texts), length), PAD, dtype="<u2")
    for row, item in zip(tokens, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        ids = [*item.ids[: length - 1], END]
        row[: len(ids)] = ids
    return tokens


def _predict(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits float32[n, target_length, vocabulary]: each token of the target from the source and the tokens before it."""
    before = functional.pad(batch["target"][:, :-1], (1, 0), value=PAD)
    mask = (batch["source"] != PAD).long()
    logits: torch.Tensor = model(input_ids=batch["source"], attention_mask=mask, decoder_input_ids=before).logits
    return logits.float()
