"""What of a step counts as a rank's own time."""

from __future__ import annotations

import pytest

from orchestrator.layout import Layout
from orchestrator.runtime.compute_time import ComputeTime, is_forward_alone
from orchestrator.runtime.link import Phase


def layout(world_size=2, zero_stage=1, **sizes):
    return Layout(world_size=world_size, micro_batch_size=1, gradient_accumulation_steps=1, zero_stage=zero_stage, **sizes)


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def step(compute, clock, data, forward, backward=5.0, micro_batches=1):
    compute.begin()
    for _ in range(micro_batches):
        for phase, seconds in ((Phase.FORWARD, data), (Phase.BACKWARD, forward), (Phase.DATA, backward)):
            clock.now_s += seconds
            compute.tick(phase)
    compute.tick(Phase.OPTIMIZER)
    clock.now_s += 1.0
    compute.end()


def test_loading_and_forward_count_and_the_median_step_stands_for_a_window():
    clock = Clock()
    compute = ComputeTime(layout(3), 1, 40, on_device=False, clock=clock)
    for number in range(10):
        assert not compute.is_due(40 + number)
        step(compute, clock, data=0.25, forward=60.0 if number == 4 else 1.0, micro_batches=2)
    assert compute.is_due(50)
    assert compute.close(50) == [0.0, 2.5, 0.0]
    assert not compute.is_due(51)
    told = compute.told([2.0, 2.5, 1.0])
    assert told == {"steps": 10, "step_s": pytest.approx(13.5), "seconds": [2.0, 2.5, 1.0]}
    assert compute.newest == {"compute_time_s": 2.0, "compute_time_max_s": 2.5, "compute_time_slowest_rank": 1.0}


SIZES = [{f"{kind}_parallel_size": 2} for kind in ("tensor", "sequence", "expert")]


@pytest.mark.parametrize("more", [{"zero_stage": 3}, *SIZES])
def test_a_forward_pass_that_waits_for_others_does_not_count(more):
    clock, mode = Clock(), layout(4, **more)
    assert not is_forward_alone(mode) and is_forward_alone(layout(4, zero_stage=2))
    compute = ComputeTime(mode, 0, 0, on_device=False, clock=clock)
    step(compute, clock, data=0.25, forward=1.0)
    assert compute.close(1)[0] == 0.25


class Event:
    """Of a device whose work takes a hundred times as long as the host takes to ask for it."""

    def __init__(self, clock):
        self._clock = clock

    def record(self):
        self.at_ms = 1000 * 100 * (self._clock.now_s - 100.0)

    def synchronize(self):
        self.is_over = True

    def elapsed_time(self, after):
        return after.at_ms - self.at_ms


def test_on_a_device_the_forward_pass_is_timed_there():
    clock, made = Clock(), []

    def event():
        made.append(Event(clock))
        return made[-1]

    compute = ComputeTime(layout(), 0, 0, on_device=True, clock=clock, new_event=event)
    for _ in range(3):
        step(compute, clock, data=0.25, forward=0.01, micro_batches=2)
    assert len(made) == 3 * 2 * 2
    assert compute.close(3)[0] == pytest.approx(2 * 0.25 + 2 * 1.0)
    assert made[-1].is_over
