"""Restart or give up, as a table."""

from __future__ import annotations

import dataclasses
import json

import pytest
from failure_table import spec

from orchestrator.job import EndReason, Remedy
from orchestrator.spec import ActivationCheckpointing, GuardSpec, Offload, OnBadNumbers, OptimizerName
from orchestrator.supervision.failures import Action, Fault, decide

BUDGETS = {"max_restarts": 100, "max_restarts_without_progress": 3, "backoff_s": 1.0}
SPEC = spec(4, **BUDGETS)
ON_GPUS = spec(4, gpus=1, **BUDGETS)


def fault(reason=EndReason.INTERNAL, fingerprint="a", committed=0, step=None, remedy=None, micro_batch_size=4):
    return Fault(
        reason=reason, remedy=remedy or reason.remedy, fingerprint=fingerprint, step=committed + 5 if step is None else step,
        committed_step=committed, micro_batch_size=micro_batch_size,
    )  # fmt: skip


KILL = fault(EndReason.RANK_KILLED, "signal:SIGKILL", remedy=Remedy.RESTART)
USER = fault(EndReason.USER_ERROR, "bug")
SLOW = fault(EndReason.STORAGE, "slow", remedy=Remedy.WAIT)
FULL = fault(EndReason.OUT_OF_MEMORY)
HOST_FULL = fault(EndReason.HOST_OUT_OF_MEMORY)


@pytest.mark.parametrize(
    "faults, restarts, action, delay_s",
    [
        ([fault()], 0, Action.RESTART, 0.0),
        ([fault()] * 2, 1, Action.RESTART, 1.0),
        ([fault()] * 3, 2, Action.RESTART, 2.0),
        ([fault()] * 4, 3, Action.FAIL, 0.0),
        ([fault(), fault(committed=50), fault(committed=100), fault(committed=150)], 3, Action.RESTART, 0.0),
        ([fault(), fault(fingerprint="b")] * 3 + [fault()], 6, Action.FAIL, 0.0),
        ([USER], 0, Action.RESTART, 0.0),
        ([USER] * 2, 1, Action.FAIL, 0.0),
        ([USER, fault(EndReason.USER_ERROR, "bug", committed=50)], 1, Action.RESTART, 0.0),
        ([USER, fault(EndReason.USER_ERROR, "another bug")], 1, Action.RESTART, 0.0),
        ([KILL], 0, Action.RESTART, 0.0),
        ([KILL] * 50, 49, Action.RESTART, 60.0),
        ([KILL] * 5, 100, Action.FAIL, 0.0),
        ([fault(EndReason.NODE_LOST)] * 9, 8, Action.RESTART, 60.0),
        ([fault(EndReason.PREEMPTED)] * 9, 8, Action.RESTART, 60.0),
        ([SLOW], 0, Action.RESTART, 1.0),
        ([SLOW] * 3, 2, Action.RESTART, 4.0),
        ([SLOW] * 4, 3, Action.FAIL, 0.0),
        ([fault(EndReason.START_UP)] * 4, 3, Action.FAIL, 0.0),
        ([fault(EndReason.DEVICE_FAULT, remedy=Remedy.OTHER_NODE)] * 4, 3, Action.FAIL, 0.0),
        ([fault(EndReason.NAN)], 0, Action.RESTART, 0.0),
        ([fault(EndReason.NAN)] * 2, 1, Action.FAIL, 0.0),
        ([fault(EndReason.CONFIGURATION)], 0, Action.FAIL, 0.0),
        ([fault(EndReason.DATA)], 0, Action.FAIL, 0.0),
        ([fault(EndReason.STORAGE)], 0, Action.FAIL, 0.0),
        ([fault(EndReason.CHECKPOINT)], 0, Action.FAIL, 0.0),
    ],
)
def test_decision(faults, restarts, action, delay_s):
    decision = decide(SPEC, faults, restarts)
    assert (decision.action, decision.delay_s) == (action, delay_s)
    assert decision.why


def test_a_bug_at_the_same_step_is_the_same_though_a_checkpoint_came_between():
    again = fault(EndReason.USER_ERROR, "bug", committed=20, step=USER.step)
    assert decide(SPEC, [USER, again], 1).action is Action.FAIL


def test_what_a_machine_has_is_blamed_on_its_node():
    broken = fault(EndReason.DEVICE_FAULT, remedy=Remedy.OTHER_NODE)
    assert decide(SPEC, [broken], 0).blames_node
    assert not decide(SPEC, [fault()], 0).blames_node


# bad numbers


def bad(window=(48, 72), reason=EndReason.NAN):
    return dataclasses.replace(fault(reason), window=window)


def guarded(**values):
    return dataclasses.replace(SPEC, guard=GuardSpec(**values))


@pytest.mark.parametrize("reason", [EndReason.NAN, EndReason.SPIKE])
def test_bad_numbers_are_tried_once_more_stopped_at_or_passed_over(reason):
    assert decide(SPEC, [bad(reason=reason)], 0).action is Action.RESTART
    assert decide(SPEC, [bad(reason=reason)] * 2, 1).action is Action.FAIL
    assert decide(guarded(on_bad_numbers=OnBadNumbers.stop), [bad(reason=reason)], 0).action is Action.FAIL
    decision = decide(guarded(on_bad_numbers=OnBadNumbers.skip), [bad(reason=reason)], 0)
    assert (decision.action, decision.skipped, decision.delay_s) == (Action.SKIP_SAMPLES, (48, 72), 0.0)
    assert decision.why == "without the samples 48 to 71, skip 1 of at most 3"


def test_so_many_windows_are_passed_over_and_no_more():
    spec = guarded(on_bad_numbers=OnBadNumbers.skip, max_skips=2)
    faults = [bad((0, 24)), KILL, bad((72, 96))]
    assert decide(spec, faults, 2).skipped == (72, 96)
    assert decide(spec, [*faults, bad((120, 144))], 3).why == "samples were passed over 2 times already (guard.max_skips)"
    assert decide(spec, [bad(None)], 0).action is Action.FAIL


def test_a_fault_is_the_same_after_the_journal():
    assert Fault.from_dict(json.loads(json.dumps(bad().to_dict()))) == bad()
    assert Fault.from_dict(json.loads(json.dumps(KILL.to_dict()))) == KILL


# memory


@pytest.mark.parametrize("asked, smaller", [(4, 2), (6, 3), (3, 1), (2, 1)])
def test_what_does_not_fit_is_done_in_smaller_portions(asked, smaller):
    decision = decide(spec(asked), [fault(EndReason.OUT_OF_MEMORY, micro_batch_size=asked)], 0)
    assert (decision.action, decision.micro_batch_size, decision.delay_s) == (Action.HALVE_MICRO_BATCH, smaller, 0.0)
    assert f"micro batch {smaller} instead of {asked}" in decision.why


def test_the_second_time_it_says_what_takes_less_memory():
    later = fault(EndReason.OUT_OF_MEMORY, committed=50, micro_batch_size=2)
    decision = decide(ON_GPUS, [FULL, later], 1)
    assert decision.action is Action.FAIL
    for advice in ("lowered from 4 to 2", "activation_checkpointing=full", "parallelism.zero_stage=2", "offload_optimizer=cpu"):
        assert advice in decision.why


def test_the_smallest_micro_batch_cannot_be_halved():
    decision = decide(spec(1), [fault(EndReason.OUT_OF_MEMORY, micro_batch_size=1)], 0)
    assert decision.action is Action.FAIL
    assert "training.micro_batch_size=1 cannot be lowered" in decision.why


def test_advice_leaves_out_what_is_in_use():
    training = dataclasses.replace(ON_GPUS.training, micro_batch_size=1, activation_checkpointing=ActivationCheckpointing.full)
    parallelism = dataclasses.replace(ON_GPUS.parallelism, zero_stage=3, offload_optimizer=Offload.cpu)
    thrifty = dataclasses.replace(ON_GPUS, training=training, parallelism=parallelism)
    why = decide(thrifty, [fault(EndReason.OUT_OF_MEMORY, micro_batch_size=1)], 0).why
    assert why.endswith("what takes less memory: more workers, a smaller model or shorter samples")


def test_less_of_the_hosts_memory_is_taken_only_where_the_host_computes():
    assert decide(SPEC, [HOST_FULL], 0).action is Action.HALVE_MICRO_BATCH
    decision = decide(ON_GPUS, [HOST_FULL], 0)
    assert (decision.action, decision.delay_s) == (Action.RESTART, 1.0)


def test_advice_leaves_out_what_is_impossible_for_the_job():
    optimizer = dataclasses.replace(ON_GPUS.optimizer, name=OptimizerName.adafactor)
    parallelism = dataclasses.replace(ON_GPUS.parallelism, zero_stage=0)
    training = dataclasses.replace(ON_GPUS.training, micro_batch_size=1)
    whole = dataclasses.replace(ON_GPUS, training=training, parallelism=parallelism, optimizer=optimizer)
    why = decide(whole, [fault(EndReason.OUT_OF_MEMORY, micro_batch_size=1)], 0).why
    assert why.endswith("memory: training.activation_checkpointing=full, more workers, a smaller model or shorter samples")


# limits


def test_no_restart_where_none_is_allowed():
    for one in (USER, FULL, SLOW, fault()):
        assert decide(spec(4, max_restarts_without_progress=0), [one], 0).action is Action.FAIL
    for one in (KILL, FULL):
        assert decide(spec(4, max_restarts=0), [one], 0).action is Action.FAIL


def test_the_backoff_of_a_thousand_kills_is_a_minute():
    assert decide(spec(4, max_restarts=10_000), [KILL] * 5_000, 4_999).delay_s == 60.0


def test_a_fault_survives_the_journal():
    assert Fault.from_dict(KILL.to_dict()) == KILL
