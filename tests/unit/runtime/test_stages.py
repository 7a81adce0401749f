"""Where a chain of layers is cut: every layer in one stage, the largest stage small, the same parameter groups in all."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.runtime.stages import Kinds, cut

MATRICES, BOTH = Kinds({"matrices"}), Kinds({"matrices", "vectors"})

layers = st.lists(st.tuples(st.integers(1, 50), st.sampled_from([MATRICES, BOTH])), min_size=1, max_size=8)


@settings(deadline=None)
@given(layers, st.integers(1, 4))
def test_the_largest_stage_is_the_smallest_that_any_cut_has(chain: list[tuple[int, Kinds]], stages: int) -> None:
    sizes, kinds = [size for size, _ in chain], [kind for _, kind in chain]
    every = Kinds().union(*kinds)

    def largest(bounds: tuple[int, ...]) -> int:
        return max(sum(sizes[start:end]) for start, end in itertools.pairwise(bounds))

    def whole(bounds: tuple[int, ...]) -> bool:
        return all(Kinds().union(*kinds[start:end]) == every for start, end in itertools.pairwise(bounds))

    inner = itertools.combinations(range(1, len(sizes)), stages - 1)
    possible = [bounds for ends in inner if whole(bounds := (0, *ends, len(sizes)))]
    if not possible:
        with pytest.raises(ConfigError, match=rf"^parallelism\.pipeline_parallel_size={stages} .* allowed is at most "):
            cut(sizes, kinds, stages)
        return
    found = cut(sizes, kinds, stages)
    assert found in possible
    assert largest(found) == min(map(largest, possible))


def test_too_many_stages_are_refused_with_the_most_that_are_possible() -> None:
    """An embedding, two blocks, and a head with its norm."""
    kinds = [MATRICES, BOTH, BOTH, BOTH]
    assert cut([5, 4, 4, 5], kinds, 3) == (0, 2, 3, 4)
    with pytest.raises(ConfigError) as caught:
        cut([5, 4, 4, 5], kinds, 4)
    assert str(caught.value) == (
        "parallelism.pipeline_parallel_size=4 is not possible for this model of 4 layers: allowed is at most 3, because each stage needs "
        "trainable matrices and vectors."
    )
