"""A follower of the logs sees every line exactly once, whatever is killed meanwhile, and a later one goes on where it was."""

from __future__ import annotations

import json
import threading
from typing import Any

from harness import TINY, kill, slowed
from patience import LIMIT_S, TRAINING_LIMIT_S

from orchestrator.control.reading.logs import LogReader
from orchestrator.job import JobState

COUNTING = (*TINY, "+workload.options.count=true", "training.max_steps=200")


def by_stream(rows: list[dict[str, Any]]) -> dict[tuple[int, int], list[str]]:
    found: dict[tuple[int, int], list[str]] = {}
    for row in rows:
        found.setdefault((row["epoch"], row["rank"]), []).append(row["text"])
    return found


def rows_of(output: str) -> list[dict[str, Any]]:
    """Without what the command says on stderr."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def kept(sandbox, job_id: str) -> dict[tuple[int, int], list[str]]:
    lines = LogReader(sandbox.store(job_id), job_id).lines(ended=True)
    return by_stream([{"epoch": line.epoch, "rank": line.rank, "text": line.text} for line in lines])


def test_every_line_once_over_the_death_of_a_rank_an_agent_and_the_controller_and_over_a_resume(sandbox, tmp_path):
    all_killed = tmp_path / "all-killed"
    job_id = sandbox.submit(*COUNTING, *slowed(all_killed, steps=10))
    follower, heard = sandbox.start("logs", "-f", job_id, "--json"), []
    listener = threading.Thread(target=lambda: heard.append(follower.communicate(timeout=TRAINING_LIMIT_S)[0]))
    listener.start()
    sandbox.wait_step(job_id, 10)
    for restarts, kind in enumerate(("rank", "agent"), 1):
        kill(sandbox.wait_until(lambda kind=kind: sandbox.victims(kind), f"a {kind}")[0])
        sandbox.wait_until(lambda restarts=restarts: sandbox.job(job_id).progress.restarts >= restarts, f"restart {restarts}")
        kill(sandbox.wait_until(lambda: sandbox.victims("controller"), "a controller")[0])
        sandbox.wait_until(lambda: sandbox.victims("controller"), "the next controller")
        sandbox.wait_until(lambda epoch=restarts + 1: any(found >= epoch for found, _ in kept(sandbox, job_id)), "lines of the next life")
    all_killed.touch()
    assert sandbox.wait_ended(job_id).state is JobState.SUCCEEDED, sandbox.describe()
    listener.join(LIMIT_S)
    rows = rows_of(heard[0])
    assert by_stream(rows) == kept(sandbox, job_id)
    streams = by_stream(rows)
    assert len({epoch for epoch, _ in streams}) >= 3 and {rank for _, rank in streams} == {0, 1}
    for lines in streams.values():
        counts = [int(line.split()[2]) for line in lines if line.startswith("micro batch")]
        assert counts == list(range(1, len(counts) + 1)), lines
    code, output = sandbox.run("resume", job_id, "training.max_steps=210")
    assert code == 0, output
    code, output = sandbox.run("logs", job_id, "--json", "--after", rows[-1]["offset"])
    later = by_stream(rows_of(output))
    assert later and {**streams, **later} == kept(sandbox, job_id) and not set(later) & set(streams)
