"""The tracking writer as a child process of the supervisor: started, kept alive, ended."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.spec import to_dict
from orchestrator.supervision.context import RunContext
from orchestrator.tracking.delivery import load_delivered

TERMINATE_LIMIT_S = 15.0
NOBODY = "http://127.0.0.1:9"
"""Where no server listens: the port of the discard protocol (RFC 863)."""

NICENESS = 10

log = logging.getLogger("orchestrator.supervisor")


class TrackingChild:
    """Does nothing where tracking is off. It is to be used on one thread: the child ends when the thread that started it does."""

    def __init__(self, context: RunContext, journal: Path) -> None:
        self._context = context
        self._spec = context.spec
        self._journal = journal
        self._process: subprocess.Popen[bytes] | None = None
        self._hidden_until_s: float | None = None

    @property
    def run_id(self) -> str:
        return load_delivered(self._journal).mlflow_run_id

    def ensure(self) -> None:
        """Start it, or start it again if it died; what it had delivered is not delivered twice."""
        if self._hidden_until_s is not None and time.monotonic() > self._hidden_until_s:
            self._show()
        if not self._spec.tracking.enabled or (self._process is not None and self._process.poll() is None):
            return
        if self._process is not None:
            log.warning("the tracking writer ended with exit code %d and is started again", self._process.returncode)
        self._process = self._start()

    def hide(self, seconds: float) -> None:
        """The writer is killed, and those that follow find no server for so long: for the chaos mode."""
        self._hidden_until_s = time.monotonic() + seconds
        self._kill()

    def finish(self, limit_s: float) -> bool:
        """Wait for the rest to be delivered, at most `limit_s`. False: something stays in the journal."""
        self._show()
        self.ensure()
        if self._process is None:
            return True
        try:
            return self._process.wait(limit_s) == 0
        except subprocess.TimeoutExpired:
            self.stop()
            return False

    def stop(self) -> None:
        """SIGTERM: one last try; then SIGKILL."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(TERMINATE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _show(self) -> None:
        """The server is not hidden any more."""
        if self._hidden_until_s is not None:
            self._hidden_until_s = None
            self._kill()

    def _start(self) -> subprocess.Popen[bytes]:
        context = self._context
        config = self._journal.with_name("tracking.json")
        tracking = context.spec.tracking if self._hidden_until_s is None else dataclasses.replace(context.spec.tracking, uri=NOBODY)
        spec = dataclasses.replace(context.spec, tracking=tracking)
        config.write_text(json.dumps({"job_id": context.job_id, "spec": to_dict(spec), "home": str(context.home.root)}))
        output = context.home.log(f"tracking-{context.job_id}")
        output.parent.mkdir(parents=True, exist_ok=True)
        # MLflow's imports take seconds of a processor, at the very time when ranks start.
        command = ["nice", "-n", str(NICENESS), sys.executable, "-m", "orchestrator.tracking.writer"]
        command += ["--journal", str(self._journal), "--config", str(config)]
        with output.open("ab") as log_file:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file)
