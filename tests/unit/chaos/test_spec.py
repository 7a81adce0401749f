"""Chaos that no job could be put through is refused before anything is started."""

from __future__ import annotations

import re

import pytest

from orchestrator.config import load_job_spec
from orchestrator.errors import ConfigError

GPT = ("workload=gpt", "training.max_steps=100")
GIVEN = "cluster.address=head:6379"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["chaos.kill_rank=-1"], "chaos.kill_rank=-1 is not possible: allowed is 0 or more."),
        (["chaos.slow_s=-1"], "chaos.slow_s=-1.0 is not possible: allowed is 0 or more."),
        (["chaos.first_step=0"], "chaos.first_step=0 is not possible: allowed is at least 1."),
        (["chaos.kill_rnak=1"], "Did you mean 'chaos.kill_rank'?"),
        (
            ["chaos.kill_rank=1", "chaos.last_step=101"],
            "chaos.last_step=101 is not possible: allowed is at most training.max_steps=100, or 0",
        ),
        (["chaos.kill_rank=1", "chaos.first_step=50", "chaos.last_step=49"], "chaos.first_step=50 is not possible: allowed is 1 to 49,"),
        (
            ["chaos.stop_rank=1", "recovery.hang_timeout_s=0"],
            "chaos.stop_rank=1 is not possible: allowed is 0 at recovery.hang_timeout_s=0",
        ),
        (["chaos.hold_gil=2", "recovery.hang_timeout_s=0"], "chaos.hold_gil=2 is not possible: allowed is 0 at recovery.hang_timeout_s=0"),
        (
            ["chaos.hide_tracking=1", "tracking.enabled=false"],
            "chaos.hide_tracking=1 is not possible: allowed is 0 at tracking.enabled=false",
        ),
        (["chaos.kill_raylet=1"], "chaos.kill_raylet=1 is not possible: allowed is 0 without cluster.address"),
        (["chaos.kill_controller=1", GIVEN], "chaos.kill_controller=1 is not possible: allowed is 0 at cluster.address=head:6379"),
        (["chaos.flip_bit=1"], "chaos.flip_bit=1 is not possible: allowed is 0 at parallelism.zero_stage=1, "),
        (["chaos.kill_rank=60", "chaos.kill_agent=41"], "recovery.max_restarts=100 is not possible: allowed is 101 or more"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_allowed(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_job_spec([*GPT, *overrides])


def test_all_kinds_are_taken_where_they_can_be_and_nothing_is_on_by_default() -> None:
    assert not load_job_spec(GPT).chaos.on
    local = ["kill_rank", "stop_rank", "hold_gil", "slow_rank", "drop_connection", "kill_agent", "kill_uploader", "kill_warm"]
    local += ["kill_supervisor", "kill_controller", "fail_store_call", "hide_tracking"]
    found = load_job_spec([*GPT, *(f"chaos.{name}=2" for name in local), "chaos.seed=42", "chaos.first_step=100"]).chaos
    assert found.counts == dict.fromkeys(local, 2) and found.on
    assert load_job_spec([*GPT, "chaos.kill_raylet=1", GIVEN]).chaos.counts == {"kill_raylet": 1}
    copies = ["chaos.flip_bit=1", "parallelism.zero_stage=0", "resources.num_workers=2"]
    assert load_job_spec([*GPT, *copies]).chaos.counts == {"flip_bit": 1}
    assert load_job_spec([*GPT, "chaos.last_step=101"]).chaos.last_step == 101, "nothing falls there"
