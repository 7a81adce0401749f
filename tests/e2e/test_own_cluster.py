"""`train` on a machine where nothing runs: it starts a cluster, and nothing is left of it."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path

from harness import ENDLESS, TINY, Sandbox, held, interrupt
from patience import LIMIT_S

from orchestrator.job import JobState


def nothing_is_left(box: Sandbox, shared_before: set[str]) -> None:
    """No process, no port that one listened at, no shared memory."""
    assert not box.processes(), [process.cmdline()[:4] for process in box.processes()]
    ours = tuple(f"orchestrator-{job.id}-" for job in box.jobs())
    assert not [name for name in shared_memory() if name.startswith(ours)]
    # Tests beside this one make and remove shared memory too.
    box.wait_until(lambda: not [name for name in orphans() - shared_before if not name.startswith("orchestrator-")], "its removal")
    for port in re.findall(r"at 127\.0\.0\.1:(\d+)", box.home.log("keeper").read_text()):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0, f"something listens at {port}"


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def orphans() -> set[str]:
    """Shared memory that no process has mapped."""
    found, mapped = shared_memory(), set[str]()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended
            mapped |= set(re.findall(r" /dev/shm/([^/\n]+)", maps.read_text()))
    return found - mapped


def test_train_ctrl_c_resume_and_nothing_left():
    box, shared = Sandbox(), shared_memory()
    try:
        command = box.start("train", *TINY, ENDLESS)
        box.wait_until(lambda: box.jobs(), "the job")
        job_id = box.jobs()[0].id
        box.wait_step(job_id, 25)
        interrupt(command)
        output, _ = command.communicate(timeout=LIMIT_S)
        assert f"resume {job_id}" in output, output
        job = box.job(job_id)
        assert job.state is JobState.CANCELLED
        assert job.progress.committed_step == job.progress.step > 0
        nothing_is_left(box, shared)
        code, output = box.run("resume", job_id, f"training.max_steps={job.progress.step + 30}")
        assert code == 0, output
        assert [row["step"] for row in box.history(job_id)] == list(range(1, job.progress.step + 31))
        nothing_is_left(box, shared)
    finally:
        box.close()


def test_after_a_power_cut_resume_gives_the_calm_result(tmp_path):
    box, power_is_back = Sandbox(), tmp_path / "power-is-back"
    try:
        calm = box.submit(*TINY)
        assert box.wait_ended(calm).state is JobState.SUCCEEDED, box.describe()
        job_id = box.submit(*TINY, *held(power_is_back, 55))
        box.wait_step(job_id, 45)
        box.kill_everything()
        power_is_back.touch()
        code, output = box.run("resume", job_id)
        assert code == 0, output + box.describe()
        assert box.history(job_id) == box.history(calm)
        assert box.fingerprint(job_id) == box.fingerprint(calm)
    finally:
        box.close()
        assert not box.processes()


def test_a_second_ctrl_c_stops_at_once_and_the_job_goes_on_from_its_last_commit(tmp_path):
    box, is_stopped = Sandbox(), tmp_path / "is-stopped"
    try:
        calm = box.submit(*TINY)
        assert box.wait_ended(calm).state is JobState.SUCCEEDED
        box.run("down")
        command = box.start("train", *TINY, *held(is_stopped, 30))  # where it stands, the first order is never obeyed
        job_id = box.wait_until(lambda: next((job.id for job in box.jobs() if job.id != calm), ""), "the job")
        box.wait_until(lambda: box.job(job_id).progress.committed_step, "a commit")
        interrupt(command)
        box.wait_until(lambda: box.job(job_id).stop_requested, "the first order")
        interrupt(command)
        output, _ = command.communicate(timeout=LIMIT_S)
        assert command.returncode == 130 and f"resume {job_id}" in output, output
        assert box.job(job_id).state is JobState.CANCELLED
        is_stopped.touch()
        code, output = box.run("resume", job_id)
        assert code == 0, output
        assert box.history(job_id) == box.history(calm)
    finally:
        box.close()


def test_ctrl_c_while_the_cluster_starts_leaves_nothing():
    box, shared = Sandbox(), shared_memory()
    try:
        command = box.start("train", *TINY)
        box.wait_until(lambda: box.home.log("ray").exists(), "the start of Ray")
        interrupt(command)
        output, _ = command.communicate(timeout=LIMIT_S)
        assert command.returncode == 130 and "Traceback" not in output, output
        assert box.jobs() == []
        nothing_is_left(box, shared)
    finally:
        box.close()
