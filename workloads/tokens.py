"""Texts as records of fixed length: a tokenizer, its special tokens, padding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from orchestrator.errors import DataError
from orchestrator.spec import to_dict
from orchestrator.workload import DatasetSink, DatasetView

from .model_folder import TOKENIZER_FILE
from .requirements import require
from .texts import Text, Texts

_FORMAT = 1  # of the recipe: a change here makes every data set anew
_SPELLINGS = {"pad": ("[PAD]", "<pad>"), "first": ("[CLS]", "<s>"), "last": ("[SEP]", "</s>"), "mask": ("[MASK]", "<mask>")}
"""BERT's and RoBERTa's."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Texts):
    """`data.options`: the texts, and how they become tokens."""

    vocab_size: int = 4096
    """Of a tokenizer that is trained on the training texts; a pretrained model brings its own."""
    length: int = 96
    """Tokens of one text with the first and the last one; longer texts are cut."""
    lowercase: bool = False
    labelled_per_class: int = 0
    """Of `text-classifier`: training texts of each class whose label is used, chosen by a hash; 0: all."""
    tokenizer_bytes: int = 4_000_000
    """Text of about this many characters, spread over the training texts, trains the tokenizer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(261 <= self.vocab_size <= 65_536, "data.options.vocab_size", self.vocab_size, "261 to 65536")
        require(self.length >= 3, "data.options.length", self.length, "at least 3")
        require(self.labelled_per_class >= 0, "data.options.labelled_per_class", self.labelled_per_class, "0 (all) or more")
        require(self.tokenizer_bytes >= 1, "data.options.tokenizer_bytes", self.tokenizer_bytes, "at least 1")

    def fingerprint(self, purpose: str, given: bytes | None, texts: list[Text]) -> str:
        """Over the recipe, the tokenizer (`given`, or the library that trains one) and all texts. Two purposes make two data sets."""
        recipe = {**to_dict(self), "path": ""}  # the same texts elsewhere make the same data set
        digest = hashlib.blake2b(json.dumps([_FORMAT, tokenizers.__version__, recipe, purpose], sort_keys=True).encode(), digest_size=20)
        for part in (given or b"", *(part.encode() for text in texts for part in (text.origin, text.label, text.text, text.split))):
            digest.update(f"{len(part)} ".encode() + part)
        return digest.hexdigest()

    def tokenizer(self, given: bytes | None, texts: list[Text], sink: DatasetSink) -> Tokenizer:
        """The one of a pretrained model (`given`: its file), else one that is trained on `texts`. It is kept beside the shards."""
        if given:
            sink.progress("taking the pretrained model's tokenizer")
            tokenizer = _read(given)
        else:
            sink.progress(f"training a tokenizer of {self.vocab_size} tokens on {len(texts):,} texts")
            every = max(1, round(sum(len(text.text) for text in texts) / self.tokenizer_bytes))
            tokenizer = train_tokenizer((text.text for text in texts[::every]), self.vocab_size, self.lowercase)
        sink.add_file(TOKENIZER_FILE, tokenizer.to_str().encode())
        return tokenizer


@dataclass(frozen=True)
class Special:
    """Ids of the tokens that are no text."""

    pad: int
    first: int
    last: int
    mask: int

    def __iter__(self) -> Any:
        return iter((self.pad, self.first, self.last, self.mask))


def special_tokens(tokenizer: Tokenizer) -> Special:
    """Raises DataError where the tokenizer has no such token: then it is not an encoder's."""
    found = {}
    for role, spellings in _SPELLINGS.items():
        ids = [tokenizer.token_to_id(spelling) for spelling in spellings]
        known = [number for number in ids if number is not None]
        if not known:
            raise DataError(f"the tokenizer has no token {' or '.join(spellings)}, which an encoder needs.")
        found[role] = known[0]
    return Special(**found)


BERT_TOKENS = tuple(spellings[0] for spellings in _SPELLINGS.values())


def train_tokenizer(texts: Iterable[str], vocab_size: int, lowercase: bool = False, special: tuple[str, ...] = BERT_TOKENS) -> Tokenizer:
    """A byte-level BPE: every text can be encoded. The ids of the tokens `special` begin at 0."""
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def kept_tokenizer(dataset: DatasetView) -> Tokenizer:
    """The one that `Recipe.tokenizer` kept."""
    return _read(dataset.file(TOKENIZER_FILE))


def encode(tokenizer: Tokenizer, texts: list[str], length: int) -> np.ndarray[Any, Any]:
    """[n, length]: the first token, the text cut to fit, the last token, padding. uint16, or uint32 for more than 65,536 tokens."""
    special = special_tokens(tokenizer)
    tokens = np.full((len(texts), length), special.pad, dtype="<u2" if tokenizer.get_vocab_size() <= 65_536 else "<u4")
    for row, item in zip(tokens, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        ids = [special.first, *item.ids[: length - 2], special.last]
        row[: len(ids)] = ids
    return tokens


def inputs_of(tokens: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, attention mask), both int64[n, longest text]: what is padding in all of them is cut off.

    Only on the CPU, where that saves time and its length can be read at once.
    """
    if tokens.device.type == "cpu":
        tokens = tokens[:, : int((tokens != pad).sum(1).max())]
    return tokens, (tokens != pad).long()


def _read(content: bytes) -> Tokenizer:
    """A `tokenizer.json`; how it pads and cuts is ours to say."""
    tokenizer = Tokenizer.from_str(content.decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
