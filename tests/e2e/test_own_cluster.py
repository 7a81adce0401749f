"""`train` on a machine where nothing runs: it starts a cluster, and nothing is left of it."""

from __future__ import annotations

from harness import TINY, Sandbox, interrupt

from orchestrator.job import JobState


def nothing_is_left(box: Sandbox) -> None:
    box.wait_until(lambda: not box.processes(), f"no process: {[p.cmdline()[:4] for p in box.processes()]}", 30)


def test_train_ctrl_c_resume_and_nothing_left():
    box = Sandbox()
    try:
        command = box.start("train", *TINY, "training.max_steps=3000")
        box.wait_until(lambda: box.jobs(), "the job")
        job_id = box.jobs()[0].id
        box.wait_step(job_id, 25)
        interrupt(command)
        output, _ = command.communicate(timeout=60)
        assert f"resume {job_id}" in output, output
        job = box.job(job_id)
        assert job.state is JobState.CANCELLED
        assert job.progress.committed_step == job.progress.step > 0
        nothing_is_left(box)
        code, output = box.run("resume", job_id, f"training.max_steps={job.progress.step + 30}")
        assert code == 0, output
        assert [row["step"] for row in box.history(job_id)] == list(range(1, job.progress.step + 31))
        nothing_is_left(box)
    finally:
        box.close()


def test_after_a_power_cut_resume_gives_the_calm_result():
    box = Sandbox()
    try:
        calm = box.submit(*TINY)
        assert box.wait_ended(calm).state is JobState.SUCCEEDED, box.describe()
        job_id = box.submit(*TINY)
        box.wait_step(job_id, 45)
        box.kill_everything()
        code, output = box.run("resume", job_id)
        assert code == 0, output + box.describe()
        assert box.history(job_id) == box.history(calm)
        assert box.fingerprint(job_id) == box.fingerprint(calm)
    finally:
        box.close()
        assert not box.processes()
