"""Where a step begins when samples are passed over."""

from __future__ import annotations

import pytest

from orchestrator.runtime.task import RankTask


@pytest.mark.parametrize("position, begins", [(0, 0), (24, 24), (48, 72), (60, 72), (72, 72), (96, 144), (119, 144), (144, 144)])
def test_a_step_begins_after_what_is_passed_over(position, begins):
    task = RankTask(
        job_id="j", run=1, epoch=1, spec={}, rank=0, world_size=1, local_rank=0, local_world_size=1, master_address="", master_port=0,
        agent_socket="", clock="", cache_dir="", skipped=[[120, 144], [96, 120], [48, 72]],
    )  # fmt: skip
    assert task.after_skipped(position) == begins
    assert RankTask.from_dict(task.to_dict()).after_skipped(position) == begins
