"""`store` and `audit`: the job store as a file, and who changed what."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.cli.screen import command
from orchestrator.cli.users import ENTRIES
from orchestrator.control.records.audit import AuditLog, entry
from orchestrator.control.records.database import writing
from orchestrator.control.records.store import JobStore
from orchestrator.control.records.users import local_user
from orchestrator.paths import Home

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("file", ["nosuch.jsonl", "."])
def test_a_file_that_cannot_be_read_is_told_and_no_store_is_made(file: str, tmp_path: Path, home: Home, capsys: Capture) -> None:
    assert main(["store", "import", str(tmp_path / file)]) == 2
    assert f"orchestrator: {tmp_path / file} cannot be read: " in capsys.readouterr().err
    assert not home.jobs_db.exists()


@pytest.mark.parametrize("action", ["export", "import"])
def test_a_password_on_the_command_line_is_refused(action: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(["store", action, str(tmp_path / "file"), "--db", "postgresql://me:hunter2@host/jobs"]) == 2
    said = capsys.readouterr().err
    assert "--db holds a password" in said and "~/.pgpass" in said and "hunter2" not in said


def test_the_audit_log_shows_the_newest_and_says_how_to_read_all(home: Home, capsys: Capture) -> None:
    engine = JobStore(home.jobs_db).engine
    AuditLog(engine).add(local_user(), "stop", "oldest")
    assert main(["audit"]) == 0
    assert "--after" not in capsys.readouterr().out, "that is all"
    with writing(engine) as connection:
        for number in range(ENTRIES):
            connection.execute(*entry(local_user(), "stop", f"job-{number}"))
    assert main(["audit"]) == 0
    _, *rows, last = capsys.readouterr().out.splitlines()
    assert (len(rows), rows[-1].split()[0]) == (ENTRIES, str(ENTRIES + 1)) and "oldest" not in rows[0]
    assert last == f"the newest; from the first one on: {command('audit --after 0', home)}"
    assert main(["audit", "--after", "0"]) == 0
    _, *rows, last = capsys.readouterr().out.splitlines()
    assert "oldest" in rows[0] and last == f"next: {command(f'audit --after {ENTRIES}', home)}"
