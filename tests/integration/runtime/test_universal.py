"""A job's checkpoint as DeepSpeed's universal folder, opened by an engine that is not ours; what it cannot hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from checkpoint_writer import write_checkpoint
from ranks import Group, spec_of

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.tensors import read_tensors
from orchestrator.errors import IncompatibleCheckpoint
from orchestrator.paths import JobKeys
from orchestrator.runtime.universal import write_universal
from orchestrator.storage import MemoryStore

COUNTERS = {"global_steps": 4, "global_samples": 32, "skipped": 0, "optimizer_steps": {"default": 4, "by_name": {}}}


@pytest.mark.slow
def test_an_engine_of_deepspeed_goes_on_from_the_folder_at_every_stage(tmp_path):
    spec = spec_of(tmp_path / "store", parallelism__zero_stage=2, resources__num_workers=2, training__ema_decay=0.5)
    group = Group(tmp_path, 2, spec).run()
    manifest = group.log.load_manifest(next(ref for ref in group.log.chain() if ref.step == 3))
    group.store.put(JobKeys("job").spec(1), json.dumps(spec).encode())
    folder = tmp_path / "universal"
    command = [sys.executable, "-m", "orchestrator.cli", "checkpoint", "export", "job", str(folder), "--format", "deepspeed-universal"]
    command += ["--step", "3", "--storage", f"file://{tmp_path / 'store'}"]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"job at step 3 is in {folder}\n"), done.stderr
    slices = {key: parts for key, parts in manifest.tensors().items() if key[0] != "ema"}
    expected = {f"{role}:{name}": value for (role, name), value in read_tensors(group.store, manifest, slices, slices).items()}
    np.savez(tmp_path / "expected.npz", steps=3, **expected)
    command = [sys.executable, str(Path(__file__).with_name("universal_reader.py")), str(folder), str(tmp_path / "expected.npz")]
    done = subprocess.run(command, env={**os.environ, "DS_ACCELERATOR": "cpu"}, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("stage")] == [f"stage {n} is right" for n in (1, 2, 3)]


def committed(sizes=None):
    """A trained weight, a frozen one and a buffer."""
    tensors = {
        ("param", "w"): torch.arange(6.0).view(2, 3), ("exp_avg", "w"): torch.ones(2, 3), ("exp_avg_sq", "w"): torch.full((2, 3), 2.0),
        ("param", "frozen"): torch.full((3,), 7.0), ("buffer", "seen"): torch.tensor(5), ("ema", "w"): torch.zeros(2, 3),
    }  # fmt: skip
    store, keys = MemoryStore(), JobKeys("job")
    log, prefix = CommitLog(store, keys), keys.checkpoint(4, 1, "u")
    pieces = [
        StatePiece(name=name, role=role, global_shape=tuple(data.shape), start=0, data=data.reshape(-1))
        for (role, name), data in tensors.items()
    ]
    write_checkpoint(store, prefix, 0, pieces, {})
    scalars = {**COUNTERS, "sizes": sizes or {}}
    epoch = log.begin_epoch("a").number
    ref = log.commit(epoch=epoch, step=4, prefix=prefix, num_writers=1, world_size=1, zero_stage=1, job_scalars=scalars)
    return store, log.load_manifest(ref)


def test_what_is_not_trained_lies_beside(tmp_path):
    store, manifest = committed()
    heard = []
    write_universal(store, manifest, tmp_path, heard.append)
    assert (tmp_path / "latest_universal").read_text() == "global_step4"
    zero = tmp_path / "global_step4" / "zero"
    assert {str(path.relative_to(zero)) for path in zero.rglob("*.pt")} == {
        "w/fp32.pt", "w/exp_avg.pt", "w/exp_avg_sq.pt", "w/step.pt", "optimizer_state.pt",
    }  # fmt: skip
    assert torch.equal(torch.load(zero / "w" / "fp32.pt")["param"], torch.arange(6.0).view(2, 3))
    module = torch.load(tmp_path / "global_step4" / "mp_rank_00_model_states.pt")["module"]
    assert module.keys() == {"frozen", "seen"} and module["seen"] == 5 and module["seen"].shape == ()
    assert sum(heard) == 4 * (6 * 3 + 3) + 8


def test_experts_that_were_dealt_out_are_refused(tmp_path):
    store, manifest = committed({"expert_parallel_size": 2})
    with pytest.raises(IncompatibleCheckpoint, match=r"parallelism\.expert_parallel_size=2"):
        write_universal(store, manifest, tmp_path)
    assert list(tmp_path.iterdir()) == []
