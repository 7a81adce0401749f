"""The order of the samples: a keyed permutation of range(N), computed and never stored.

A global position p counts samples since the start of training; epoch = p // N. The sample at p is a pure function of
(seed, epoch, p % N, N): it does not depend on the number of workers, and the state of the order is the position alone.

The permutation is two Feistel networks with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002):
one over windows of `window` neighbouring samples, one inside each window. So the reads of `window` positions in a row touch the
bytes of one or two windows. The last window, which may be short, takes a place among the others like any other.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int64]]

DEFAULT_WINDOW = 65_536
_ROUNDS = 6


def ids_at(position: int, count: int, num_samples: int, seed: int, window: int = DEFAULT_WINDOW) -> Ids:
    """Sample ids, int64[count], at the global positions [position, position + count); crosses epochs."""
    if position < 0 or count < 0:
        raise ValueError(f"position={position} and count={count} must not be negative")
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1")
    ids = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        epoch, offset = divmod(position + done, num_samples)
        take = min(count - done, num_samples - offset)
        ids[done : done + take] = sample_ids(seed, epoch, np.arange(offset, offset + take), num_samples, window)
        done += take
    return ids


def sample_ids(seed: int, epoch: int, offsets: Ids, num_samples: int, window: int = DEFAULT_WINDOW) -> Ids:
    """The ids at `offsets` (each in range(num_samples)) of an epoch. A bijection of range(num_samples) for each seed and epoch."""
    offsets = np.asarray(offsets, dtype=np.int64)
    num_windows = -(-num_samples // window)
    tail = num_samples - (num_windows - 1) * window
    place, inside = _split(offsets, _tail_place(seed, epoch, num_windows), window, tail)
    chosen = _permute(place, np.full_like(place, num_windows), _keys(seed, epoch, 0), np.zeros_like(place))
    sizes = np.where(chosen == num_windows - 1, tail, window)
    return chosen * window + _permute(inside, sizes, _keys(seed, epoch, 1), chosen)


def draws_of(seed: int, epochs: Ids, ids: Ids, count: int) -> Ids:
    """Random whole numbers from 0 up to 2**32, int64[n, count], for samples `ids` in their `epochs` (int64[n] each).

    A pure function of (seed, epoch, sample id): the same at any number of workers and after a restart.
    """
    places = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step
    drawn = np.empty((len(ids), count), dtype=np.int64)
    for epoch in np.unique(epochs):
        first, second, *_ = _keys(seed, int(epoch), 2)
        chosen = epochs == epoch
        state = _mix(_mix(ids[chosen].astype(np.uint64) ^ first) ^ second)
        with np.errstate(over="ignore"):
            drawn[chosen] = _mix(state[:, None] + places) >> np.uint64(32)
    return drawn


def rank_slice(ids: Ids, world_size: int, rank: int, micro_batch_size: int) -> Ids:
    """What `rank` trains of a step's ids: int64[accumulation, micro].

    The step's ids are cut into micro batches and dealt out in turn, so that a step has the same micro batches at any world size.
    """
    micro_batches, rest = divmod(len(ids), micro_batch_size)
    if rest or micro_batches % world_size:
        raise ValueError(f"{len(ids)} samples are no whole micro batches of {micro_batch_size} for {world_size} ranks")
    return ids.reshape(micro_batches, micro_batch_size)[rank::world_size]


@functools.lru_cache(maxsize=64)
def _tail_place(seed: int, epoch: int, num_windows: int) -> int:
    """The place at which the last window, the only one that may be short, is read."""
    last = np.array([num_windows - 1])
    return int(_permute(last, np.array([num_windows]), _keys(seed, epoch, 0), np.zeros_like(last), inverse=True)[0])


def _split(offsets: Ids, tail_place: int, window: int, tail: int) -> tuple[Ids, Ids]:
    """(place of the window, offset inside it) of each offset, where the window at `tail_place` has `tail` samples."""
    tail_start = tail_place * window
    before, after = offsets < tail_start, offsets >= tail_start + tail
    shifted = np.where(after, offsets + (window - tail), offsets)  # as if the short window were a full one
    place = np.where(before | after, shifted // window, tail_place)
    return place, shifted - place * window


@functools.lru_cache(maxsize=64)
def _keys(seed: int, epoch: int, network: int) -> tuple[np.uint64, ...]:
    """One key per round. SeedSequence mixes every bit of what it is given, and its output is stable over numpy versions."""
    return tuple(np.random.SeedSequence([seed, epoch, network]).generate_state(_ROUNDS, np.uint64))


def _permute(values: Ids, sizes: Ids, keys: tuple[np.uint64, ...], tweaks: Ids, inverse: bool = False) -> Ids:
    """A permutation of range(size) for each (size, tweak), element-wise.

    The network permutes the next power of four, at most four times the size; a value that leaves the range goes through it
    again until it is back (it must come back: a cycle through the range is closed).
    """
    half, limits = _half_bits(sizes), sizes.astype(np.uint64)
    tweak = _mix(tweaks.astype(np.uint64) + np.uint64(1))
    result: np.ndarray[Any, Any] = _feistel(values.astype(np.uint64), half, keys, tweak, inverse)
    out = np.flatnonzero(result >= limits)
    while len(out):
        result[out] = _feistel(result[out], half[out], keys, tweak[out], inverse)
        out = out[result[out] >= limits[out]]
    return result.astype(np.int64)


def _half_bits(sizes: Ids) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Bits h of half a block, so that 4**h >= size; at least 1."""
    distinct, index = np.unique(sizes, return_inverse=True)
    bits = [max(1, (int(size - 1).bit_length() + 1) // 2) for size in distinct]
    return np.array(bits, dtype=np.uint64)[index].reshape(sizes.shape)


def _feistel(values: Any, half: Any, keys: Any, tweak: Any, inverse: bool) -> Any:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in reversed(keys) if inverse else keys:
        if inverse:
            left, right = right ^ (_mix(left ^ tweak ^ key) & mask), left
        else:
            left, right = right, left ^ (_mix(right ^ tweak ^ key) & mask)
    return (left << half) | right


def _mix(values: Any) -> Any:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014); arithmetic is modulo 2**64."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
