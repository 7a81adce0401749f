"""`orchestrator list`: the jobs, a line each."""

from __future__ import annotations

import time

from orchestrator.cli.parser import parser_for, verbs_of
from orchestrator.cli.screen import as_json, command, duration, first_line, table
from orchestrator.control.quick_list import quick_list
from orchestrator.control.summary import JobSummary
from orchestrator.errors import UserError, nearest
from orchestrator.job import JobState
from orchestrator.paths import Home

LIMIT = 50
_HEAD = ("JOB", "STATE", "DONE", "ETA", "WORKERS", "GPUS", "POSITION", "RECOVERIES", "AGE", "NOW")


def list_(arguments: list[str]) -> int:
    parser = parser_for("list", "The jobs, oldest first: all that have not ended, and the newest of the others.")
    parser.add_argument("--state", default="", metavar="STATES", help=f"only these: {', '.join(state.value for state in JobState)}")
    parser.add_argument("--limit", type=int, default=LIMIT, metavar="N", help=f"so many at most; 0: all; default: {LIMIT}")
    parser.add_argument("--json", action="store_true", help="a list of objects; `status JOB --json` has the whole job")
    asked = parser.parse_args(arguments)
    if asked.limit < 0:
        raise UserError(f"--limit {asked.limit} is not possible: allowed is 0 (all) or more.")
    states = _states(asked.state)
    home = Home.find(asked.home)
    quick = quick_list(home, states, asked.limit)
    found, total = quick if quick is not None else _asked(home, states, asked.limit)
    now = time.time()
    if asked.json:
        print(as_json([summary.to_dict(now) for summary in found]))
    elif found:
        print(table(_HEAD, [_row(summary, now) for summary in found]))
        _say_next(found, total, home)
    elif states is not None and (total or _asked(home, None, 1)[1]):
        print(f"no job is {' or '.join(state.value for state in states or ())}; {command('list', home)} shows all")
    else:
        print(f"no jobs in {home.root}; `orchestrator train` starts one")
    return 0


def _asked(home: Home, states: list[JobState] | None, limit: int) -> tuple[list[JobSummary], int]:
    """A server, or the job store by SQLAlchemy."""
    verbs = verbs_of(home)
    return verbs.summaries(states, limit) if verbs else ([], 0)


def _states(text: str) -> list[JobState] | None:
    """Those named, separated by commas; None: all."""
    if not text:
        return None
    known = {state.value: state for state in JobState}
    for name in text.split(","):
        if name not in known:
            raise UserError(f"--state {name} is not possible: allowed is {', '.join(known)}.{nearest(name, known)}")
    return [known[name] for name in text.split(",")]


def _row(summary: JobSummary, now: float) -> tuple[str, ...]:
    eta_s, (gpus, needed) = summary.eta_s(now), summary.gpus
    live = not summary.state.terminal
    return (
        summary.id, summary.state.value, f"{int(100 * summary.share)}%", "-" if eta_s is None else duration(eta_s),
        f"{summary.num_placed}/{summary.num_workers}" if live else str(summary.num_workers),
        "-" if not needed else f"{gpus}/{needed}" if live else str(needed),
        "-" if summary.position is None else str(summary.position), str(summary.recoveries),
        duration((summary.ended_s or now) - summary.submitted_s), now_line(summary),
    )  # fmt: skip


def now_line(summary: JobSummary) -> str:
    """What it does now, or how it ended."""
    progress = summary.progress
    if summary.state.terminal:
        return first_line(summary.reason)
    if summary.state is JobState.QUEUED:
        return f"waiting: {summary.reason or 'for the controller'}"
    if progress.loss is None:
        return progress.phase or summary.state.value
    doing = "" if progress.phase in ("", "training") else f"  {progress.phase}"
    return f"step {progress.step}/{summary.max_steps}  loss {progress.loss:.4f}{doing}"


def _say_next(found: list[JobSummary], total: int, home: Home) -> None:
    if total > len(found):
        print(f"{total - len(found):,} more: {command('list --limit 0', home)}")
    newest = next((summary for summary in reversed(found) if not summary.state.terminal), found[-1])
    print(f"next: {command(f'status {newest.id}', home)}")
