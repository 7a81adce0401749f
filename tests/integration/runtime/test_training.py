"""The loop with real gloo ranks and DeepSpeed: what it reports, and what a run that was stopped on the way comes to."""

from __future__ import annotations

import gzip
import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ranks import Group, spec_of

TIMES = ("data_time_s", "forward_time_s", "backward_time_s", "optimizer_time_s", "other_time_s")


@pytest.mark.slow
def test_a_log_step_reports_rates_times_and_memory(tmp_path):
    spec = spec_of(tmp_path / "store", training__log_interval_steps=2, training__eval_interval_steps=1)
    rows = Group(tmp_path, 2, spec).run().of("metrics")
    assert [row["step"] for row in rows] == [2, 4, 6]
    for values in (row["values"] for row in rows):
        assert all(math.isfinite(value) for value in values.values())
        assert values["step_time_s"] == pytest.approx(sum(values[name] for name in TIMES))
        assert all(values[name] > 0 for name in TIMES)
        assert values["samples_per_s"] == pytest.approx(24 / values["step_time_s"])
        assert values["host_rss_bytes"] > 50e6
        assert (values["skipped_steps"], values["tokens_per_s"]) == (0, 0)
        assert not {"mfu", "loss_scale"} & set(values)  # no known peak, no fp16


@pytest.mark.slow
def test_the_ranks_compute_times_are_told_without_the_time_that_they_wait(tmp_path):
    """One rank sleeps in its forward pass, twice in a step; the others wait for it in the backward pass."""
    spec = spec_of(
        tmp_path / "store", training__max_steps=25, training__log_interval_steps=5, workload__options={"slow_rank": 1}
    )  # fmt: skip
    group = Group(tmp_path, 3, spec).run()
    told = group.of("computed")
    assert [(message["step"], message["steps"], len(message["seconds"])) for message in told] == [(10, 10, 3), (20, 10, 3)]
    assert group.of("computed", rank=1) == []
    for message in told:
        assert message["step_s"] >= message["seconds"][1] == max(message["seconds"]) >= 0.04
    shown = group.of("metrics")[-1]["values"]
    assert shown["compute_time_max_s"] == max(told[-1]["seconds"]) >= shown["compute_time_s"]


@pytest.mark.slow
def test_the_steps_asked_for_leave_a_trace_that_changes_nothing(tmp_path):
    plain = Group(tmp_path / "plain", 2, spec_of(tmp_path / "plain" / "store"))
    traced = Group(tmp_path / "traced", 2, spec_of(tmp_path / "traced" / "store", training__profile_steps=[2, 3]))
    for group in (plain, traced):
        group.folder.mkdir()
        group.run()
    name = "trace_steps_2_3.json.gz"
    assert name in [message["name"] for message in traced.of("artifact")]
    assert traced.of("artifact", rank=1) == []
    events = json.loads(gzip.decompress(traced.store.get(f"jobs/job/artifacts/{name}")))["traceEvents"]
    forwards = [event for event in events if event.get("name") == "aten::gelu"]
    assert len(forwards) == 2 * 3  # steps, micro batches of a rank
    assert traced.history() == plain.history()
