"""The server that commands here ask, where one is named."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator

from orchestrator.control.checkup.finding import Finding, Subject, ok, problem, warning

SERVER_VARIABLE = "ORCHESTRATOR_SERVER"
LIMIT_S = 5.0


def check_server(subject: Subject) -> Iterator[Finding]:
    """Does it answer? To look takes no token."""
    url = subject.environ.get(SERVER_VARIABLE, "").strip().rstrip("/")
    if not url:
        yield ok(f"none is named by ${SERVER_VARIABLE}: commands work on the jobs of {subject.home.root}")
        return
    yield _asked(url)
    local = url.startswith(("http://127.", "http://localhost", "http://[::1]"))
    if url.startswith("http://") and not local:
        yield warning(f"{url} is asked without TLS: whoever is on the way can read the token", "put a proxy with a certificate before it: https://...")


def _asked(url: str) -> Finding:
    fix = f"export {SERVER_VARIABLE}=https://..., or start it there: orchestrator serve"
    try:
        with urllib.request.urlopen(f"{url}/v1/health", timeout=LIMIT_S) as answer:
            answer.read()
    except urllib.error.HTTPError as refusal:
        if refusal.code == 503:
            said = f"{url} answers, but its controller hangs or its job store does not answer"
            return problem(said, "orchestrator doctor   (on that machine)")
        return problem(f"{url} answers {refusal.code} {refusal.reason}: is it `orchestrator serve`?", fix)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return problem(f"{url} does not answer: {getattr(error, 'reason', error)}", fix)
    return ok(f"{url} answers")
