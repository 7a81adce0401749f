"""The uploader as a process: it is started again with what was pending, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading

import pytest
import torch
from patience import LIMIT_S, wait_until

from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.slab import slabs_of
from orchestrator.checkpoints.stage import StagingRing
from orchestrator.paths import JobKeys
from orchestrator.spec import StorageSpec, to_dict
from orchestrator.storage import DirectoryStore
from orchestrator.supervision.uploader_child import MAX_STARTS, UploaderChild

STEM = "orchestrator-job-0"


class Agent:
    """Listens as an agent does; `messages` are what the uploader said."""

    def __init__(self, folder, storage_url):
        self.folder, self.messages, self.failures = folder, [], []
        self._changed = threading.Condition()
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(folder / "s"))
        server.listen()
        threading.Thread(target=self._accept, args=(server,), daemon=True).start()
        opened = {
            "storage": to_dict(StorageSpec(url=storage_url)), "folder": str(folder), "stem": STEM, "agent_socket": str(folder / "s"),
            "bytes_per_s": 0,
        }  # fmt: skip
        self.child = UploaderChild(opened, os.environ, folder / "log", self.failures.append)

    def _accept(self, server):
        while True:
            connection, _ = server.accept()
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection):
        for line in connection.makefile():
            message = json.loads(line)
            self.child.heard(message)
            with self._changed:
                self.messages.append(message)
                self._changed.notify_all()

    def wait(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, LIMIT_S), (self.folder / "log").read_text()
        return self.messages[count - 1]


def staged(folder, step, epoch=1):
    prefix = JobKeys("job").checkpoint(step, epoch, "u")
    piece = StatePiece(name="w", role="param", global_shape=(4,), start=0, data=torch.full((4,), float(step)))
    ring, slab = StagingRing(folder, f"{STEM}-0", 1), []
    ring.stage(
        [piece], list, lambda: None, slab.append, job_id="job", epoch=epoch, step=step, prefix=prefix, writer=0, scalars={}
    )  # fmt: skip
    ring.finish()
    return {"type": "staged", "rank": 0, "writer": 0, "epoch": epoch, "step": step, "checkpoint": prefix, "slab": str(slab[0])}


def kill(child):
    pid = child._process.pid
    os.kill(pid, signal.SIGKILL)
    return pid


def test_what_a_killed_uploader_had_to_do_is_done_by_the_next(tmp_path):
    agent = Agent(tmp_path, (tmp_path / "store").as_uri())
    agent.child.begin(1)
    message = staged(tmp_path, 1)
    pid = kill(agent.child)  # it may not even know of it
    agent.child.take(message)
    wait_until(lambda: agent.child._process.pid != pid)
    saved = agent.wait(1)
    assert (saved["type"], saved["step"], saved["epoch"], saved["writer"]) == ("saved", 1, 1, 0)
    assert saved["num_bytes"] > 0
    names = {info.key.removeprefix(message["checkpoint"]) for info in DirectoryStore(tmp_path / "store").list(message["checkpoint"])}
    assert names == {"seg-00000-0000", "idx/00000.json.zst"}
    assert slabs_of(tmp_path, STEM)
    agent.child.close()
    assert not slabs_of(tmp_path, STEM)
    assert not agent.failures


@pytest.mark.slow
def test_an_uploader_that_never_lives_is_told_as_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    agent = Agent(tmp_path, (tmp_path / "store").as_uri())
    agent.child.take(staged(tmp_path, 1))
    wait_until(lambda: agent.failures)
    assert f"ended {MAX_STARTS} times in a row, with exit code 1" in agent.failures[0]["message"]
    agent.child.close()
