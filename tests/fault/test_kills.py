"""SIGKILL at seeded random moments; the interrupted run must equal the calm one bit for bit.

`make campaign NAME=kills N=...` runs the long form of the same function.
"""

from __future__ import annotations

import random

import pytest
from harness import TINY, held, slowed

from orchestrator.events import EventKind
from orchestrator.job import JobState
from orchestrator.supervision.accounting import Bucket

KINDS = ("rank", "rank", "agent", "supervisor", "controller", "warm", "uploader")
LENGTH = ("training.max_steps=300",)


@pytest.fixture(scope="module")
def calm(sandbox):
    job_id = sandbox.submit(*TINY, *LENGTH)
    assert sandbox.wait_ended(job_id).state is JobState.SUCCEEDED, sandbox.describe()
    seconds = sandbox.ledger(job_id).seconds
    assert not any(seconds[bucket] for bucket in (Bucket.LOST, Bucket.DETECTION, Bucket.RECOVERY, Bucket.HANG)), seconds
    assert all(seconds[bucket] for bucket in (Bucket.PROVISION, Bucket.START, Bucket.STEP, Bucket.EVALUATION, Bucket.CHECKPOINT)), seconds
    return sandbox.history(job_id), sandbox.fingerprint(job_id)


@pytest.mark.parametrize("number, kind", list(enumerate(KINDS)))
def test_a_killed_run_equals_the_calm_one(sandbox, calm, number, kind, tmp_path):
    rng, is_killed = random.Random(1000 + number), tmp_path / "is-killed"
    job_id = sandbox.submit(*TINY, *LENGTH, "+workload.options.sleep_s=0.01", *held(is_killed, 290))  # what is seen of it is late
    sandbox.wait_step(job_id, rng.randrange(1, 250))
    victim = rng.choice(sandbox.wait_until(lambda: sandbox.victims(kind), f"a {kind}"))
    victim.kill()
    is_killed.touch()
    job = sandbox.wait_ended(job_id)
    assert job.state is JobState.SUCCEEDED, sandbox.describe()
    assert sandbox.history(job_id) == calm[0]
    assert sandbox.fingerprint(job_id) == calm[1]
    seconds = sandbox.ledger(job_id).seconds
    assert seconds[Bucket.STEP] > 0
    if kind in ("rank", "agent", "warm"):
        assert job.progress.restarts >= 1
    if job.progress.restarts:
        assert seconds[Bucket.LOST] > 0 and seconds[Bucket.RECOVERY] > 0, seconds


def test_a_rank_whose_memory_is_full_goes_on_in_half_the_micro_batch_on_the_same_curve(sandbox, calm):
    job_id = sandbox.submit(*TINY, *LENGTH, "+workload.options.fits=2")
    job = sandbox.wait_ended(job_id)
    assert job.state is JobState.SUCCEEDED, sandbox.describe()
    told = [event.message for _, event in sandbox.client.events(job_id) if event.kind is EventKind.RESTARTED]
    assert len(told) == 1 and told[0].startswith("micro batch 2 instead of 4, at the same global batch of 24 after: rank 1: "), told
    before, after = calm[0], sandbox.history(job_id)
    for name in ("step", "lr", "ids_crc"):
        assert [row[name] for row in after] == [row[name] for row in before]
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in after] == pytest.approx([row[name] for row in before], rel=1e-5)


def test_a_preempted_run_equals_the_calm_one(sandbox, calm, tmp_path):
    """SIGTERM to one of two ranks: both save at the same step, and the job is queued for its next run."""
    has_left = tmp_path / "has-left"
    job_id = sandbox.submit(*TINY, *LENGTH, "checkpoint.interval_steps=1000", *slowed(has_left, steps=50))
    sandbox.wait_step(job_id, 50)
    sandbox.wait_until(sandbox.ranks, "a rank")[-1].terminate()
    sandbox.wait_until(lambda: sandbox.job(job_id).run == 2, "the way back to the queue")
    has_left.touch()
    job = sandbox.wait_ended(job_id)
    assert (job.state, job.run) == (JobState.SUCCEEDED, 2), sandbox.describe()
    assert (job.progress.preemptions, job.progress.restarts) == (1, 0)
    told = [event for _, event in sandbox.client.events(job_id)]
    first, _ = [event.fields["step"] for event in told if event.kind is EventKind.COMMITTED]
    left = next(event.message for event in told if event.kind is EventKind.ENDED)
    assert left[7:] == f"got SIGTERM; stopped after step {first}; back to the queue, goes on from step {first}"
    assert 50 <= first < 300
    seconds = sandbox.ledger(job_id).seconds
    assert seconds[Bucket.QUEUE] > 0 and not seconds[Bucket.RECOVERY], seconds
    assert sandbox.history(job_id) == calm[0]
    assert sandbox.fingerprint(job_id) == calm[1]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "what, damage",
    [("seg-*", flipped), ("seg-*", lambda content: content[:-100]), ("MANIFEST*", flipped), ("MANIFEST*", lambda content: content[:-9])],
    ids=["flipped segment", "truncated segment", "flipped manifest", "truncated manifest"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(sandbox, calm, what, damage, tmp_path):
    is_damaged = tmp_path / "is-damaged"
    job_id = sandbox.submit(*TINY, *LENGTH, *slowed(is_damaged, steps=60))
    sandbox.wait_until(lambda: (sandbox.job(job_id).progress.committed_step or 0) >= 60, "a commit")
    sandbox.client.request_stop(job_id, "drain")
    job = sandbox.wait_ended(job_id)
    newest = job.progress.committed_step
    folder = next((sandbox.home.store / "jobs" / job_id / "ckpt").glob(f"{newest:012d}-*"))
    damaged = next(folder.glob(what))
    damaged.write_bytes(damage(damaged.read_bytes()))
    is_damaged.touch()
    code, output = sandbox.run("resume", job_id)
    assert code == 0, output
    told = [event.message for _, event in sandbox.client.events(job_id) if event.kind is EventKind.CORRUPT_CHECKPOINT]
    assert any(damaged.name in message for message in told), told
    assert sandbox.history(job_id) == calm[0]
    assert sandbox.fingerprint(job_id) == calm[1]
