"""The optimizer's state in files of a disk: real ranks, DeepSpeed's own op. Skipped where that is not compiled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import TRAINING_LIMIT_S

sys.path.insert(0, str(Path(__file__).parent))

from ranks import Group, spec_of

from orchestrator.errors import ConfigError
from orchestrator.runtime.ops import load_op


@pytest.fixture(scope="module", autouse=True)
def op():
    try:
        load_op("async_io", "this test")
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of the calm runs by cell, of the resumed ones by (source, target)."""
    folder = tmp_path_factory.mktemp("disk")
    command = [sys.executable, str(Path(__file__).with_name("disks.py")), str(folder), "disk"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRAINING_LIMIT_S)
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads((folder / "result.json").read_text())
    calm = {tuple(row["cell"]): row for row in found if row["phase"] == "calm"}
    resumed = {tuple(map(tuple, row["cell"])): row for row in found if row["phase"] == "resumed"}
    return calm, resumed


def losses(row):
    return [loss for loss, _ in row["losses"]]


def tolerance(cell):
    return 1e-5 if cell[2] == "fp32" else 1e-2


@pytest.mark.slow
def test_state_in_files_trains_as_state_in_memory(rows):
    calm, _ = rows
    on_disk = {cell: row for cell, row in calm.items() if cell[4] == "disk"}
    assert {cell[2:4] for cell in on_disk} == {("fp32", "adamw"), ("bf16", "adamw"), ("fp32", "lion"), ("fp32", "sgd")}
    for cell, row in on_disk.items():
        expected = calm[(*cell[:4], "", *cell[5:])]
        assert losses(row) == pytest.approx(losses(expected), abs=tolerance(cell)), cell
        assert row["steps"] == expected["steps"]
        assert abs(losses(row)[0] - losses(row)[-1]) > 1e-2


@pytest.mark.slow
def test_state_in_files_goes_on_bit_for_bit_and_to_and_from_memory_within_rounding(rows):
    calm, resumed = rows
    assert len(resumed) == 4 + 3
    for (source, target), row in resumed.items():
        if source == target:
            assert (row["losses"], row["digest"]) == (calm[source]["losses"][3:], calm[source]["digest"]), source
        assert losses(row) == pytest.approx(losses(calm[source])[3:], abs=tolerance(source)), (source, target)
        assert row["steps"] == calm[source]["steps"]


@pytest.mark.slow
def test_killed_ranks_go_on_from_their_checkpoint_and_no_file_of_theirs_stays(tmp_path):
    disk = tmp_path / "disk"
    wide = {"workload__options": {"width": 65536}, "parallelism__zero_stage": 3, "training__max_steps": 12}
    on_disk = {"parallelism__offload_optimizer": "nvme", "parallelism__nvme_path": str(disk)}
    (tmp_path / "calm").mkdir()
    calm = Group(tmp_path / "calm", 2, spec_of(tmp_path / "calm" / "store", **wide)).run()
    killed = Group(tmp_path, 2, spec_of(tmp_path / "store", **wide, **on_disk)).start()
    killed.wait_for(lambda message: message["type"] == "metrics" and message["step"] == 4)
    for process in killed.processes:
        process.kill()
    killed.finish()
    assert len(list(disk.glob("orchestrator-job-*/zero_stage_3/optimizer/rank*/exp_avg-*.swp"))) == 2  # one of each rank
    resumed = Group(tmp_path, 2, spec_of(tmp_path / "store", **wide, **on_disk)).run()
    begun = min(resumed.losses())
    assert begun in (4, 7, 10) and sorted(resumed.losses()) == list(range(begun, 13))
    for step, loss in resumed.losses().items():
        assert loss == pytest.approx(calm.losses()[step], abs=1e-5)
    assert list(disk.iterdir()) == []
