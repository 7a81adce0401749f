"""`orchestrator doctor`: what is wrong here, and what to type."""

from __future__ import annotations

from orchestrator.cli.parser import parser_for
from orchestrator.cli.screen import as_json
from orchestrator.control.checkup import CHECKS, Finding, Level, Subject, checked
from orchestrator.errors import UserError, nearest
from orchestrator.paths import Home


def doctor_(arguments: list[str]) -> int:
    """Exit status 1 if there is a problem."""
    parser = parser_for("doctor", "Check this machine, the cluster, the object store and the tracking server.")
    parser.add_argument(
        "overrides", nargs="*", help="what jobs use, for example storage.url=s3://bucket/prefix tracking.uri=http://host:5000"
    )
    parser.add_argument("--only", default="", metavar="CHECKS", help=f"some of: {', '.join(CHECKS)}")
    parser.add_argument("--json", action="store_true", help="a list of objects: check, level, message, fix")
    asked = parser.parse_intermixed_args(arguments)
    names, subject = _names(asked.only), _subject(asked.overrides, asked.home)
    rows: list[tuple[str, Finding]] = []
    for name in names:
        for finding in checked(name, subject):
            rows.append((name, finding))
            if not asked.json:
                _show(name, finding)
    if asked.json:
        print(as_json([{"check": name, "level": row.level.value, "message": row.message, "fix": row.fix} for name, row in rows]))
    else:
        _sum_up([row for _, row in rows])
    return 1 if any(row.level is Level.PROBLEM for _, row in rows) else 0


def _names(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",")] if only else list(CHECKS)
    for name in names:
        if name not in CHECKS:
            raise UserError(f"--only {name} is not possible: allowed is {', '.join(CHECKS)}.{nearest(name, CHECKS)}")
    return names


def _subject(overrides: list[str], home: str) -> Subject:
    if not overrides:
        return Subject(home=Home.find(home))
    from orchestrator.config import load_job_spec

    spec = load_job_spec(overrides)
    return Subject(home=Home.find(home or spec.cluster.home), storage=spec.storage, tracking=spec.tracking, cluster=spec.cluster)


def _show(name: str, finding: Finding) -> None:
    print(f"{finding.level.value:<8} {name:<14} {finding.message}", flush=True)
    if finding.fix:
        print(f"{'':<8} {'':<14} fix: {finding.fix}", flush=True)


def _sum_up(findings: list[Finding]) -> None:
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    if not problems and not warnings:
        print("all is well")
        return
    parts = [(problems, "problem"), (warnings, "warning")]
    print(", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in parts if count) + "; after a fix: orchestrator doctor")
