"""A disk that is full, data that were damaged: the job ends with exit code 2 and says what and where."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness import TINY, Sandbox, slowed
from patience import TRAINING_LIMIT_S

from orchestrator.job import EndReason, JobState


@pytest.fixture(scope="module")
def sandbox():
    box = Sandbox()
    box.submit(*TINY, "training.max_steps=1")  # the cluster that the tests share
    yield box
    box.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    try:
        with (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        return


def test_a_disk_that_is_full_refuses_the_job(sandbox, small_disk):
    known = sandbox.jobs()
    fill(small_disk)
    code, output = sandbox.run("train", *TINY, f"storage.url={small_disk.as_uri()}")
    assert code == 2, output
    assert "No space left" in output and str(small_disk) in output and "Traceback" not in output
    assert len(sandbox.jobs()) == len(known)


def test_a_disk_that_fills_up_ends_the_job_and_it_goes_on_when_there_is_space(sandbox, small_disk, tmp_path):
    settings = (*TINY, "checkpoint.keep_last=0", "checkpoint.interval_steps=5", "+workload.options.width=400")
    calm = sandbox.submit(*settings)
    assert sandbox.wait_ended(calm).state is JobState.SUCCEEDED
    is_full = tmp_path / "is-full"
    command = sandbox.start("train", *settings, f"storage.url={small_disk.as_uri()}", *slowed(is_full, steps=5))
    sandbox.wait_until(lambda: (job := sandbox.jobs()[-1]).id != calm and job.progress.committed_step, "a commit")
    fill(small_disk)
    is_full.touch()
    output, _ = command.communicate(timeout=TRAINING_LIMIT_S)
    assert command.returncode == 2, output
    assert "No space left" in output and str(small_disk) in output
    job = sandbox.jobs()[-1]
    assert job.state is JobState.FAILED and job.result.end_reason is EndReason.STORAGE
    assert 0 < job.progress.committed_step < 120
    (small_disk / "filler").unlink()
    code, output = sandbox.run("resume", job.id, "checkpoint.keep_last=1", "checkpoint.grace_minutes=0")
    assert code == 0, output
    assert sandbox.history(job.id) == sandbox.history(calm)
    assert sandbox.fingerprint(job.id) == sandbox.fingerprint(calm)


@pytest.mark.parametrize("damage", ["a flipped bit", "a truncated file"])
def test_a_damaged_shard_is_named(sandbox, damage):
    first = sandbox.submit(*TINY, "training.max_steps=2", "data.name=damaged")
    assert sandbox.wait_ended(first).state is JobState.SUCCEEDED
    shard = next((sandbox.home.store / "datasets" / "damaged").rglob("train-00000"))
    good = shard.read_bytes()
    bad = bytearray(good if damage == "a flipped bit" else good[:-7])
    bad[len(bad) // 2] ^= 4
    shard.write_bytes(bad)
    code, output = sandbox.run("train", *TINY, "data.name=damaged")
    shard.write_bytes(good)
    assert code == 2, output
    assert str(shard) in output and "damaged" in output
    assert sandbox.jobs()[-1].result.end_reason is EndReason.DATA
