"""The order is a permutation, the same everywhere, and local."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.order import draws_of, ids_at, rank_slice, sample_ids

sizes = st.integers(1, 3000)
windows = st.integers(1, 400)
seeds = st.integers(0, 2**63)


@settings(max_examples=150, deadline=None)
@given(num_samples=sizes, window=windows, seed=seeds, epoch=st.integers(0, 1000))
def test_every_epoch_has_each_sample_exactly_once(num_samples, window, seed, epoch):
    ids = ids_at(epoch * num_samples, num_samples, num_samples, seed, window)
    assert np.array_equal(np.sort(ids), np.arange(num_samples))


@pytest.mark.parametrize("num_samples", [1, 2, 3, 64, 65, 65_535, 65_536, 65_537, 200_003])
def test_the_default_window_covers_each_sample_once(num_samples):
    assert np.array_equal(np.sort(ids_at(0, num_samples, num_samples, 5)), np.arange(num_samples))


@settings(max_examples=100, deadline=None)
@given(num_samples=sizes, window=windows, seed=seeds, data=st.data())
def test_any_cut_of_the_positions_gives_the_same_ids(num_samples, window, seed, data):
    """Across epochs too: reading [p, p+c) at once equals reading it in two parts."""
    position = data.draw(st.integers(0, 5 * num_samples))
    count = data.draw(st.integers(0, 2 * num_samples))
    cut = data.draw(st.integers(0, count))
    whole = ids_at(position, count, num_samples, seed, window)
    parts = [ids_at(position, cut, num_samples, seed, window), ids_at(position + cut, count - cut, num_samples, seed, window)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_the_order_is_what_it_was():
    """Golden: a change here would change the data of every job that continues."""
    assert ids_at(0, 12, 10, 0, window=4).tolist() == [1, 0, 3, 2, 6, 7, 4, 5, 9, 8, 7, 6]
    assert ids_at(10**6, 4, 360_000, 1).tolist() == [355318, 328105, 357631, 355072]


def test_epochs_and_seeds_differ_and_do_not_keep_the_natural_order():
    first, second, other_seed = (ids_at(p, 1000, 1000, seed) for p, seed in ((0, 0), (1000, 0), (0, 1)))
    for a, b in ((first, second), (first, other_seed), (first, np.arange(1000))):
        assert np.mean(a == b) < 0.02


def test_windows_are_read_one_after_another():
    window, num_samples = 100, 1050
    read = ids_at(0, num_samples, num_samples, 3, window) // window
    changes = np.count_nonzero(np.diff(read))
    assert changes == 10  # eleven windows, each read in one go
    assert not np.array_equal(read, np.sort(read))


def test_windows_are_shuffled_differently():
    ids = sample_ids(0, 0, np.arange(1000), 1000, window=100).reshape(10, 100) % 100
    assert len({tuple(row) for row in ids}) == 10


def test_places_are_spread_evenly():
    """The mean id of each tenth of an epoch is the middle of the range, within five standard errors."""
    num_samples = 60_000
    ids = ids_at(0, num_samples, num_samples, 11).reshape(10, -1)
    error = num_samples / np.sqrt(12 * ids.shape[1])
    assert np.all(np.abs(ids.mean(axis=1) - num_samples / 2) < 5 * error)


def test_an_astronomic_epoch_needs_no_memory():
    ids = ids_at(10**12 - 1000, 2048, 10**12, 0)
    assert len(set(ids.tolist())) >= 2047 and ids.min() >= 0 and ids.max() < 10**12


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_every_world_trains_the_same_micro_batches_in_the_same_order(world_size):
    ids = ids_at(48, 24, 1000, 0)
    slices = [rank_slice(ids, world_size, rank, 4) for rank in range(world_size)]
    assert all(part.shape == (6 // world_size, 4) for part in slices)
    together = np.stack(slices, axis=1).reshape(-1)
    assert np.array_equal(together, ids)


def test_a_world_that_does_not_divide_the_step_is_refused():
    with pytest.raises(ValueError, match="24 samples are no whole micro batches of 4 for 5 ranks"):
        rank_slice(ids_at(0, 24, 100, 0), 5, 0, 4)
    with pytest.raises(ValueError, match="no whole micro batches of 7"):
        rank_slice(ids_at(0, 24, 100, 0), 1, 0, 7)


@pytest.mark.parametrize(("position", "count", "num_samples"), [(-1, 1, 5), (0, -1, 5), (0, 1, 0)])
def test_impossible_positions_are_refused(position, count, num_samples):
    with pytest.raises(ValueError, match="must"):
        ids_at(position, count, num_samples, 0)


def test_draws_are_spread_evenly_and_depend_on_seed_epoch_sample_and_place():
    ids, epochs = np.arange(20_000), np.zeros(20_000, dtype=np.int64)
    draws = draws_of(1, epochs, ids, 4)
    assert draws.shape == (20_000, 4) and draws.min() >= 0 and draws.max() < 2**32
    counts = np.apply_along_axis(lambda column: np.bincount(column >> 28, minlength=16), 0, draws)
    assert (abs(counts - 1250) < 200).all()  # 16 bins of 1,250 each; 200 is more than five deviations
    assert abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.03
    mixed = draws_of(1, np.array([0, 1, 0]), np.array([5, 5, 7]), 4)
    assert np.array_equal(mixed[[0, 2]], draws[[5, 7]]) and not np.array_equal(mixed[0], mixed[1])
    assert not np.array_equal(draws_of(2, epochs[:1], ids[:1], 4), draws[:1])
