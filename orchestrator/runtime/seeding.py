"""Random states of a rank: set from the job's seed, kept in checkpoints as JSON, left alone by evaluation."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_model(seed: int) -> None:
    """The same on every rank, before the model is built."""
    _seed_all(np.random.SeedSequence([seed]))


def seed_module(seed: int, name: str, device: torch.device) -> None:
    """torch's numbers for `device`, the same on every rank, before a module of the model gets its values by itself."""
    drawn = int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(drawn)  # torch.manual_seed() takes milliseconds before CUDA has begun: it notes where it was called
    if device.type == "cuda":
        torch.cuda.manual_seed(drawn)


def seed_rank(seed: int, step: int, share: int, pipeline_stage: int = 0) -> None:
    """Different for every share of samples and positions: at the start of training, and where a checkpoint of another layout is continued.

    Ranks of one tensor-parallel group draw the same, because what they drop out must be the same; stages of a pipeline do not.
    """
    _seed_all(np.random.SeedSequence([seed, step, share, pipeline_stage]))


def _seed_all(sequence: np.random.SeedSequence) -> None:
    for_python, for_numpy, for_torch = (int(word) for word in sequence.generate_state(3, np.uint32))
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.manual_seed(for_torch)


def random_states() -> dict[str, Any]:
    """Python's, numpy's and torch's states, JSON-ready."""
    version, words, gauss = random.getstate()
    kind, key, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [kind, _encode(np.asarray(key, dtype="<u4").tobytes()), int(position), int(has_gauss), float(cached)],
        "torch": _encode_tensor(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        states["cuda"] = _encode_tensor(torch.cuda.get_rng_state())
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """The inverse of `random_states`. A state of CUDA is passed over on a machine without it."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, key, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.frombuffer(base64.b64decode(key), dtype="<u4"), position, has_gauss, cached))
    torch.set_rng_state(_decode_tensor(states["torch"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode_tensor(states["cuda"]))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever is drawn inside, training goes on with the numbers it would have drawn anyway."""
    before = random_states()
    try:
        yield
    finally:
        set_random_states(before)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _encode_tensor(state: torch.Tensor) -> str:
    return _encode(state.cpu().numpy().tobytes())


def _decode_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
