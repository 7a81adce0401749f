from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoints.plan import Box, boxes_of, prove_coverage
from orchestrator.errors import CoverageError

shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


def flat_elements(shape, box):
    grid = np.arange(math.prod(shape)).reshape(shape)
    whole = Box(tuple(0 for _ in shape), shape)
    return np.asarray(grid[box.within(whole)]).reshape(-1).tolist()


@given(shapes, st.data())
def test_boxes_hold_the_interval_in_flat_order(shape, data):
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    boxes = boxes_of(shape, start, end)
    assert [element for box in boxes for element in flat_elements(shape, box)] == list(range(start, end))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@given(shapes, st.data())
def test_intervals_that_tile_are_proven_and_a_changed_tiling_is_not(shape, data):
    size = math.prod(shape)
    cuts = sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=4))) if size > 1 else []
    edges = [0, *cuts, size]
    parts = [boxes_of(shape, a, b) for a, b in itertools.pairwise(edges)]
    boxes = [box for part in parts for box in part]
    prove_coverage("t", shape, boxes)
    victim = data.draw(st.integers(0, len(boxes) - 1))
    with pytest.raises(CoverageError, match="no slice"):
        prove_coverage("t", shape, boxes[:victim] + boxes[victim + 1 :])
    with pytest.raises(CoverageError, match="overlap"):
        prove_coverage("t", shape, [*boxes, boxes[victim]])


def test_a_slice_outside_the_tensor_is_refused():
    with pytest.raises(CoverageError, match="inside"):
        prove_coverage("t", (2, 2), [Box((0, 0), (3, 2))])
