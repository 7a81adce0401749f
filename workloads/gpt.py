"""`gpt`: a decoder learns to write Python from the source code of the standard library.

Records are `tokens: uint16[block_size + 1]` (uint32 where a given tokenizer has more than 65,536 tokens): files are joined by an
end-of-text token and cut into blocks, so that inputs are `tokens[:-1]` and targets `tokens[1:]`. Training and
validation files are told apart by a hash of their relative path.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional

from orchestrator.errors import DataError, UserError
from orchestrator.spec import JobSpec, from_dict, to_dict
from orchestrator.workload import DatasetSink, DatasetView, Initialise

from .adapters import merge
from .chunked_loss import allow_chunks, cross_entropy
from .decoder import Decoder, Mixture, Pretrained, decoder_of
from .documents import check_positions, document_inputs
from .layers import decoder_layers
from .mixture import active_parameters, balance_loss, expert_counts, imbalance
from .model_folder import TOKENIZER_FILE, save_folder
from .requirements import require

END_OF_TEXT = "<|endoftext|>"
_FORMAT = 1  # of the recipe: a change here makes every data set anew


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`data.options`."""

    root: str = ""
    """Folder with Python files; empty: the standard library of the running interpreter."""
    exclude: tuple[str, ...] = ("site-packages", "dist-packages", "__pycache__")
    """Folder names that are passed over."""
    vocab_size: int = 1024
    block_size: int = 128
    """Tokens of one sample's input."""
    validation_share: float = 0.05
    """Share of the files that are held out."""
    tokenizer_bytes: int = 4_000_000
    """Text of about this many bytes, spread over the training files, trains the tokenizer."""

    def __post_init__(self) -> None:
        require(257 <= self.vocab_size <= 65_536, "data.options.vocab_size", self.vocab_size, "257 to 65536")
        require(self.block_size >= 1, "data.options.block_size", self.block_size, "at least 1")
        require(0 < self.validation_share < 1, "data.options.validation_share", self.validation_share, "between 0 and 1")
        require(self.tokenizer_bytes >= 1, "data.options.tokenizer_bytes", self.tokenizer_bytes, "at least 1")


@dataclass(frozen=True, kw_only=True)
class Options:
    """`workload.options`: how the loss is computed, and the text that is shown at the end."""

    loss_chunk_tokens: int = 1024
    """The loss is computed from the logits of so many tokens at a time; 0: from those of the whole micro batch."""

    document_mask: bool = False
    """Tokens see those of their own text only, and each text's positions begin at 0. Without it a block's texts see those before them."""
    prompt: str = "def "
    new_tokens: int = 120
    temperature: float = 0.7
    """0: always the likeliest token."""
    sample_seed: int = 0

    def __post_init__(self) -> None:
        require(self.loss_chunk_tokens >= 0, "workload.options.loss_chunk_tokens", self.loss_chunk_tokens, "0 (all at once) or more")
        require(self.prompt != "", "workload.options.prompt", "''", "a text of at least one character")
        require(self.new_tokens >= 1, "workload.options.new_tokens", self.new_tokens, "at least 1")
        require(self.temperature >= 0, "workload.options.temperature", self.temperature, "0 or more")


class GPT:
    """The workload. `orchestrator.workload.Workload` tells what each method promises."""

    def __init__(self, spec: JobSpec) -> None:
        self.recipe: Recipe = from_dict(Recipe, spec.data.options, "data.options.")
        self.decoder: Decoder = decoder_of(spec.model.options)
        if isinstance(self.decoder, Pretrained):
            self.decoder.check_layout(spec)
        self.options: Options = from_dict(Options, spec.workload.options, "workload.options.")
        self.root = Path(self.recipe.root or sysconfig.get_paths()["stdlib"])

    @property
    def tokens_per_sample(self) -> int:
        return self.recipe.block_size

    @property
    def sequence_fields(self) -> Mapping[str, int]:
        return {} if isinstance(self.decoder, Mixture) else {"tokens": 1}  # experts are balanced over whole sequences

    def source_fingerprint(self) -> str:
        """Over the recipe, the tokenizer library's version, a given tokenizer, and every file's path and content. About 0.2 s for 31 MB."""
        recipe = {**to_dict(self.recipe), "root": ""}  # the same files elsewhere make the same data set
        digest = hashlib.blake2b(digest_size=20)
        digest.update(json.dumps([_FORMAT, tokenizers.__version__, recipe], sort_keys=True).encode())
        given = self.decoder.tokenizer()
        if given:
            digest.update(f"{given[1]}".encode() + given[0])
        for name, content in self._files():
            digest.update(f"{len(name)} {len(content)} {name}".encode())
            digest.update(content)
        return digest.hexdigest()

    def prepare(self, sink: DatasetSink) -> None:
        texts: dict[str, list[str]] = {"train": [], "validation": []}
        for name, text in self._texts():
            texts[self._split(name)].append(text)
        tokenizer = self._given_or_trained(sink, texts["train"])
        sink.add_file(TOKENIZER_FILE, tokenizer.to_str().encode())
        for split, group in texts.items():
            sink.progress(f"tokenizing {len(group)} {split} files, {sum(map(len, group)) / 1e6:.1f} MB of text")
            for records in pack(tokenizer, group, self.recipe.block_size, self._end(tokenizer)):
                sink.write(split, records)

    def build_model(self, dataset: DatasetView) -> torch.nn.Module:
        model = self.decoder.build(_tokenizer(dataset).get_vocab_size(), self.recipe.block_size)
        if self.options.document_mask:
            check_positions(model)
        if self.options.loss_chunk_tokens and not isinstance(self.decoder, Mixture):
            allow_chunks(model)
        return model

    @property
    def initialise(self) -> Initialise | None:
        return self.decoder.initialise

    def loss(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross entropy, and for a mixture of experts the balance losses of its layers."""
        inputs, targets = self._given_and_next(batch)
        if not isinstance(self.decoder, Mixture):
            return cross_entropy(model, inputs, targets, "mean", self.options.loss_chunk_tokens)
        output = model(**inputs, output_router_logits=True)
        loss = functional.cross_entropy(output.logits.flatten(0, 1).float(), targets.flatten())
        if not self.decoder.balance_weight:
            return loss
        return loss + self.decoder.balance_weight * balance_loss(output.router_logits, self.decoder.experts_per_token)

    def evaluate(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Sums over tokens, so that each counts the same however they are batched: `loss_sum` float64, `right` and `tokens` int64."""
        inputs, targets = self._given_and_next(batch)
        mixed = isinstance(self.decoder, Mixture)
        output = model(**inputs, output_router_logits=True) if mixed else model(**inputs)
        logits, expected = output.logits.flatten(0, 1).float(), targets.flatten()
        losses = functional.cross_entropy(logits, expected, reduction="none")
        right = (logits.argmax(-1) == expected).sum()
        sums = {"loss_sum": losses.double().sum(), "right": right, "tokens": torch.tensor(expected.numel(), device=expected.device)}
        if isinstance(self.decoder, Mixture):
            sums["expert_tokens"] = torch.stack([expert_counts(logits, self.decoder.experts_per_token) for logits in output.router_logits])
        return sums

    def layers(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        return decoder_layers(model, lambda batch: batch["tokens"][:, :-1])

    def metrics(self, sums: Mapping[str, np.ndarray[Any, Any]]) -> Mapping[str, float]:
        """`expert_imbalance`: `mixture.imbalance` of the split, where there are experts."""
        loss = float(sums["loss_sum"]) / float(sums["tokens"])
        balance = {"expert_imbalance": imbalance(sums["expert_tokens"].tolist())} if "expert_tokens" in sums else {}
        accuracy = float(sums["right"]) / float(sums["tokens"])
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": accuracy, **balance}

    def flops_per_sample(self, model: torch.nn.Module) -> float:
        """6 N + 12 L h s per token (PaLM, appendix B), N being the parameters that a token meets."""
        config: Any = model.config
        met = active_parameters(model, getattr(config, "num_experts_per_tok", 1))
        tokens = self.recipe.block_size
        return tokens * (6.0 * met + 12.0 * config.num_hidden_layers * config.hidden_size * tokens)

    def sample(self, model: torch.nn.Module, dataset: DatasetView) -> str:
        """What the model writes after the prompt. The same on every rank: the generator has a seed of its own."""
        tokenizer = _tokenizer(dataset)
        end = self._end(tokenizer)
        device = next(model.parameters()).device
        tokens = torch.tensor([[end, *tokenizer.encode(self.options.prompt, add_special_tokens=False).ids]], device=device)
        tokens = self._continue(model, tokens)
        written = tokens[0, 1:].tolist()
        written = written[: written.index(end)] if end in written else written
        return str(tokenizer.decode(written))

    def export(self, model: torch.nn.Module, dataset: DatasetView, folder: Path) -> None:
        """A folder for `model=gpt-pretrained` and transformers."""
        tokenizer = _tokenizer(dataset)
        model.config.eos_token_id = self._end(tokenizer)
        save_folder(merge(model), folder, tokenizer)

    def export_adapters(self, model: torch.nn.Module, dataset: DatasetView, folder: Path) -> None:
        """A folder for peft's `PeftModel.from_pretrained`, with the tokenizer."""
        if not isinstance(self.decoder, Pretrained):
            raise UserError("only a model of model=gpt-pretrained can have adapters: export it without --adapters.")
        self.decoder.export_adapters(model, folder)
        (folder / TOKENIZER_FILE).write_text(_tokenizer(dataset).to_str())

    def _continue(self, model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.options.sample_seed)
        was_training = model.training
        model.eval()
        for _ in range(self.options.new_tokens):  # a fixed count: ranks that share a model's parameters stay in step
            with torch.no_grad():
                logits = model(input_ids=tokens[:, -self.recipe.block_size :]).logits[0, -1].float().cpu()
            tokens = torch.cat([tokens, self._choose(logits, generator).to(tokens.device).view(1, 1)], dim=1)
        model.train(was_training)
        return tokens

    def _choose(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.options.temperature == 0:
            return logits.argmax()
        return torch.multinomial(torch.softmax(logits / self.options.temperature, -1), 1, generator=generator)

    def _given_and_next(self, batch: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """(inputs of the model, the tokens that come next int64[samples, tokens])."""
        tokens = batch["tokens"]
        inputs = {"input_ids": tokens[:, :-1]}
        if self.options.document_mask:
            inputs |= document_inputs(tokens[:, :-1], self._end_of_text)
        return inputs, tokens[:, 1:]

    def _given_or_trained(self, sink: DatasetSink, texts: list[str]) -> Tokenizer:
        """The tokenizer of a pretrained model's folder, else one that is trained on `texts`."""
        given = self.decoder.tokenizer()
        if given:
            sink.progress("taking the pretrained model's tokenizer")
            return Tokenizer.from_str(given[0].decode())
        sink.progress(f"training a tokenizer of {self.recipe.vocab_size} tokens on Python source")
        return train_tokenizer(_spread(texts, self.recipe.tokenizer_bytes), self.recipe.vocab_size)

    def _end(self, tokenizer: Tokenizer) -> int:
        """The token that stands before each text."""
        given = self.decoder.tokenizer()
        if given:
            return given[1]
        end = tokenizer.token_to_id(END_OF_TEXT)
        assert end is not None, "train_tokenizer puts it in"
        return end

    @cached_property
    def _end_of_text(self) -> int:
        """The token that stands before each text, known without the data set: a tokenizer of ours has it first."""
        given = self.decoder.tokenizer()
        return given[1] if given else 0

    def _split(self, name: str) -> str:
        place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") / 2**64
        return "validation" if place < self.recipe.validation_share else "train"

    def _texts(self) -> Iterator[tuple[str, str]]:
        """Files that are UTF-8; the standard library has a handful of others, made to test decoders."""
        for name, content in self._files():
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                continue
            yield name, text

    def _files(self) -> Iterator[tuple[str, bytes]]:
        """(path below the root, content) of the Python files, in the order of their paths."""
        if not self.root.is_dir():
            raise DataError(f"data.options.root={self.root} is not a folder. Give one with Python files, or leave it empty.")
        names = sorted(_python_files(self.root, frozenset(self.recipe.exclude)))
        if not names:
            raise DataError(f"data.options.root={self.root} holds no Python files.")
        for name in names:
            yield name, (self.root / name).read_bytes()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE: every text can be encoded, and decoding gives it back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pack(tokenizer: Tokenizer, texts: list[str], block_size: int, end: int, files_at_once: int = 64) -> Iterator[np.ndarray[Any, Any]]:
    """Records of `block_size + 1` tokens from the texts, each text after the token `end`; what is left at the last is dropped."""
    token = np.dtype("<u2" if tokenizer.get_vocab_size() <= 65_536 else "<u4")
    record = np.dtype([("tokens", token, (block_size + 1,))])
    left = np.empty(0, dtype=token)
    for first in range(0, len(texts), files_at_once):
        encoded = tokenizer.encode_batch(texts[first : first + files_at_once], add_special_tokens=False)
        stream = [np.array([end, *item.ids], dtype=token) for item in encoded]
        left = np.concatenate([left, *stream])
        count = len(left) // (block_size + 1)
        whole, left = np.split(left, [count * (block_size + 1)])
        yield whole.view(record)


def _python_files(root: Path, excluded: frozenset[str]) -> Iterator[str]:
    """Paths below the root, as text: to sort and to cut Paths would take longer than to read the files."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in excluded]  # os.walk goes into what is left here
        below = folder[len(str(root)) :].lstrip("/")
        yield from (f"{below}/{name}" if below else name for name in names if name.endswith(".py"))


def _spread(texts: list[str], num_bytes: int) -> Iterator[str]:
    """Every n-th text, so that they come to about `num_bytes` characters and stand for the whole."""
    total = sum(len(text) for text in texts)
    yield from texts[:: max(1, round(total / num_bytes))]


def _tokenizer(dataset: DatasetView) -> Tokenizer:
    return Tokenizer.from_str(dataset.file(TOKENIZER_FILE).decode())
