"""Rates and times from a clock of the test's own."""

from __future__ import annotations

import pytest
import torch

from orchestrator.runtime.link import Phase
from orchestrator.runtime.metrics import Meter, flops_per_sample, measure_flops_per_s, memory, peak_flops_per_s
from orchestrator.spec import Precision


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


class Workload:
    tokens_per_sample = 10


def spend(meter, clock, *parts):
    """Each part: (phase, seconds in it)."""
    for phase, seconds in parts:
        meter.tick(phase)
        clock.now_s += seconds


STEP = [
    (Phase.DATA, 0.5), (Phase.FORWARD, 1.0), (Phase.BACKWARD, 2.0), (Phase.FORWARD, 1.0), (Phase.BACKWARD, 2.0),
    (Phase.OPTIMIZER, 0.25),
]  # fmt: skip


def test_times_are_means_per_step_and_add_up():
    clock = Clock()
    meter = Meter(10, 0.0, 0.0, clock)
    spend(meter, clock, (Phase.START, 50.0), *STEP, *STEP, (Phase.COLLECTIVE, 2.5))
    assert meter.figures(2, 16) == pytest.approx(
        {
            "step_time_s": 8.0, "data_time_s": 0.5, "forward_time_s": 2.0, "backward_time_s": 4.0, "optimizer_time_s": 0.25,
            "other_time_s": 1.25, "samples_per_s": 1.0, "tokens_per_s": 10.0,
        }
    )  # fmt: skip


def test_steps_of_different_sizes_count_by_their_samples():
    clock = Clock()
    meter = Meter(10, 0.0, 0.0, clock)
    meter.restart(3, 100)
    spend(meter, clock, (Phase.FORWARD, 4.0))
    figures = meter.figures(5, 124)  # steps of 8 and 16
    assert (figures["samples_per_s"], figures["tokens_per_s"], figures["step_time_s"]) == (6.0, 60.0, 2.0)


def test_evaluations_and_checkpoints_do_not_count():
    clock = Clock()
    meter = Meter(0, 0.0, 0.0, clock)
    spend(meter, clock, (Phase.EVALUATION, 30.0))
    meter.restart(6, 48)
    spend(meter, clock, *STEP, (Phase.EVALUATION, 100.0), (Phase.CHECKPOINT, 100.0), *STEP)
    figures = meter.figures(8, 64)
    assert figures["step_time_s"] == pytest.approx(6.75)
    assert figures["tokens_per_s"] == 0
    spend(meter, clock, *STEP)
    assert meter.figures(9, 72)["step_time_s"] == pytest.approx(6.75)


def test_mfu_is_the_share_of_the_peak_of_all_devices():
    clock = Clock()
    meter = Meter(512, 3e12, 2 * 989e12, clock)
    spend(meter, clock, (Phase.FORWARD, 0.01))
    assert meter.figures(1, 4)["mfu"] == pytest.approx(4 / 0.01 * 3e12 / (2 * 989e12))


def test_the_share_of_the_measured_rate_and_the_bytes_sent_stand_beside_the_rates():
    clock = Clock()
    meter = Meter(512, 3e12, 0.0, clock, measured_flops_per_s=2 * 700e12, sent_bytes={"all_reduce": 30.0, "all_gather": 12.0})
    spend(meter, clock, (Phase.FORWARD, 0.01))
    figures = meter.figures(1, 4)
    assert figures["mfu_of_measured"] == pytest.approx(4 / 0.01 * 3e12 / (2 * 700e12))
    assert {name: value for name, value in figures.items() if name.startswith("comm_")} == {
        "comm_bytes_per_step": 42.0, "comm_all_reduce_bytes_per_step": 30.0, "comm_all_gather_bytes_per_step": 12.0,
    }  # fmt: skip
    assert "mfu" not in figures


def test_the_measured_rate_is_that_of_the_quickest_product():
    times = iter([0.0, 4.0, 10.0, 12.5, *(float(second) for pair in range(8) for second in (20 + 10 * pair, 23 + 10 * pair))])
    assert measure_flops_per_s(torch.device("cpu"), torch.float32, 16, lambda: next(times)) == 2 * 16**3 / 2.5


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12), ("NVIDIA H100 PCIe", "fp16", 756e12), ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H200 NVL", "bf16", 835e12), ("NVIDIA A100-SXM4-80GB", "bf16", 312e12), ("NVIDIA H100 80GB HBM3", "fp32", 0.0),
        ("cpu", "bf16", 0.0),
    ],
)  # fmt: skip
def test_the_peak_of_a_device_by_its_name(name, precision, peak):
    assert peak_flops_per_s(name, Precision(precision)) == peak


def test_flops_are_the_workloads_own_or_six_per_parameter_and_token():
    model = torch.nn.Linear(3, 5)
    assert flops_per_sample(Workload(), model) == 6 * 20 * 10
    own = type("Own", (Workload,), {"flops_per_sample": lambda self, model: 7})
    assert flops_per_sample(own(), model) == 7.0


def test_the_resident_set_grows_with_what_is_touched():
    before = memory(torch.device("cpu"))
    held = torch.ones(50_000_000)
    after = memory(torch.device("cpu"))
    assert set(before) == {"host_rss_bytes"}
    assert after["host_rss_bytes"] - before["host_rss_bytes"] > 0.9 * held.nbytes
