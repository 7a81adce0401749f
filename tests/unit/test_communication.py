"""Bytes per step against the textbook's figures. What is really exchanged: tests/integration/runtime/test_collectives.py."""

from __future__ import annotations

import pytest

from orchestrator.communication import bytes_per_step
from orchestrator.layout import Layout

PARAMETERS = 1000


def sent(zero_stage: int, world: int = 4, accumulation: int = 3, *, to_owner: bool = False, **sizes: int) -> dict[str, float]:
    layout = Layout(world_size=world, micro_batch_size=2, gradient_accumulation_steps=accumulation, zero_stage=zero_stage, **sizes)
    return bytes_per_step(layout, PARAMETERS, 2, to_owner=to_owner, width=50)


@pytest.mark.parametrize(
    ("stage", "to_owner", "shares"),
    [
        (0, False, {"all_reduce": 2}), (1, False, {"all_reduce": 2, "all_gather": 1}), (1, True, {"reduce": 1, "all_gather": 1}),
        (2, False, {"all_reduce": 6, "all_gather": 1}), (2, True, {"reduce": 3, "all_gather": 1}),
        (3, False, {"reduce_scatter": 3, "all_gather": 6}),
    ],
)  # fmt: skip
def test_what_data_parallel_ranks_send(stage: int, to_owner: bool, shares: dict[str, int]) -> None:
    """In units of the parameters' bytes x (n - 1) / n."""
    assert sent(stage, to_owner=to_owner) == {name: share * PARAMETERS * 2 * 3 / 4 for name, share in shares.items()}


def test_one_rank_sends_nothing() -> None:
    assert [sent(stage, world=1) for stage in range(4)] == [{}] * 4


def test_tensor_parallel_ranks_exchange_activations_of_every_micro_batch() -> None:
    assert sent(0, world=2, tensor_parallel_size=2) == {"all_reduce": 2 * (50 * 2 * 3 * 2) * 1 / 2}
    both = sent(1, world=4, tensor_parallel_size=2)
    assert both == {"all_reduce": 2 * PARAMETERS * 2 / 2 + 600, "all_gather": PARAMETERS * 2 / 2}


@pytest.mark.parametrize("name", ["pipeline_parallel_size", "sequence_parallel_size", "expert_parallel_size"])
def test_nothing_is_said_where_more_is_dealt_out(name: str) -> None:
    assert sent(1, world=4, **{name: 2}) == {}
