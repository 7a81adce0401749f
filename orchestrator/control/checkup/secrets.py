"""Can others read what only this user may?"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from orchestrator.control.checkup.finding import Finding, Subject, ok, problem, warning


def check_secrets(subject: Subject) -> Iterator[Finding]:
    home, ray_token = subject.home, subject.user_home / ".ray" / "auth_token"
    files = [path for path in (home.token, home.api_token, home.database, ray_token) if path.exists()]
    files += sorted((home.root / "secrets").glob("*.json")) + sorted((home.root / "supervisors").glob("*.json"))
    wrong = [finding for path in files if (finding := _open_to_others(path)) is not None]
    wrong += list(_switched_off(subject))
    yield from wrong or [
        ok(f"{len(files)} files of tokens and keys, which only you can read" if files else "no token yet: the first start makes one")
    ]


def _open_to_others(path: Path) -> Finding | None:
    status = path.stat()
    if status.st_uid != os.getuid():
        return problem(f"{path} belongs to another user (uid {status.st_uid})", f"sudo chown {os.getuid()} {shlex.quote(str(path))}")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        return problem(f"{path} can be read by others (mode {mode:04o})", f"chmod 600 {shlex.quote(str(path))}")
    return None if status.st_size else problem(f"{path} is empty", f"rm {shlex.quote(str(path))}   (the next start makes a new one)")


def _switched_off(subject: Subject) -> Iterator[Finding]:
    mode = subject.environ.get("RAY_AUTH_MODE", "token")
    if mode != "token":
        said = f"RAY_AUTH_MODE={mode}: who reaches the ports of a Ray cluster that is given by cluster.address can run any code on it"
        yield warning(said, "unset RAY_AUTH_MODE, and start that cluster with RAY_AUTH_MODE=token")
