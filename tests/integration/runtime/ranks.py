"""Real ranks for tests: `python ranks.py TASK.json` is one rank; `Group` starts them and plays agent, uploader and supervisor."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from patience import LIMIT_S, TRAINING_LIMIT_S  # noqa: E402

from orchestrator.checkpoints.commit import CommitLog  # noqa: E402
from orchestrator.paths import JobKeys  # noqa: E402
from orchestrator.ports import free_port  # noqa: E402
from orchestrator.runtime.link import Order, ProgressClock  # noqa: E402
from orchestrator.runtime.task import RankTask  # noqa: E402
from orchestrator.spec import JobSpec, from_dict, to_dict  # noqa: E402
from orchestrator.storage import DirectoryStore  # noqa: E402
from orchestrator.supervision.uploader import Uploader  # noqa: E402


def spec_of(store, **changes):
    """The tiny job as a dict; `changes` by dotted name, `__` for the dot."""
    values = {
        "workload": {"name": "tiny", "entrypoint": "tiny_workload:Tiny", "code_dir": str(TESTS)},
        "model": {"name": "tiny"},
        "data": {"name": "tiny"},
        "training": {"max_steps": 6, "global_batch_size": 24, "micro_batch_size": 4},
        "optimizer": {"lr": 0.01, "warmup_steps": 2},
        "checkpoint": {"interval_steps": 3},
        "storage": {"url": f"file://{store}"},
    }
    for name, value in changes.items():
        group, key = name.split("__")
        values.setdefault(group, {})[key] = value
    return to_dict(from_dict(JobSpec, values))


class Group:
    """A worker group and its supervisor in one: runs to the end, commits what all ranks saved."""

    program = __file__
    """What is started for each rank with the path of its task."""

    def __init__(self, folder, world_size, spec, job_id="job", epoch=None):
        self.folder, self.world_size, self.spec, self.job_id = Path(folder), world_size, spec, job_id
        self.store = DirectoryStore(self.folder / "store")
        self.log = CommitLog(self.store, JobKeys(job_id))
        self.messages = []
        self._changed = threading.Condition()
        self.processes = []
        self._saved = {}

    def start(self, commits=None):
        """Begin an epoch and fork the ranks; `commits`: None for what the epoch may go on from."""
        begun = self.begin_epoch()
        self.epoch = begun.number
        chosen = [ref.key for ref in begun.commits] if commits is None else commits
        run_dir = self.folder / f"{self.job_id}-{self.epoch}"
        run_dir.mkdir()
        self.uploader = Uploader(self.store, run_dir, "slab", self._hear)
        self._listen(run_dir / "s")
        port = free_port()
        self.clocks = [ProgressClock(run_dir / f"clock{rank}", create=True) for rank in range(self.world_size)]
        for rank in range(self.world_size):
            task = RankTask(
                job_id=self.job_id, run=1, epoch=self.epoch, spec=self.spec, rank=rank, world_size=self.world_size, local_rank=rank,
                local_world_size=self.world_size, master_address="127.0.0.1", master_port=port, agent_socket=str(run_dir / "s"),
                clock=str(run_dir / f"clock{rank}"), cache_dir=str(self.folder / "cache"), commits=chosen,
                slab_folder=str(run_dir), slab_stem="slab",
            )  # fmt: skip
            path = run_dir / f"task{rank}.json"
            path.write_text(json.dumps(task.to_dict()))
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
            with (run_dir / f"log{rank}").open("w") as log:
                self.processes.append(subprocess.Popen([sys.executable, self.program, str(path)], env=environment, stdout=log, stderr=log))
        self.run_dir = run_dir
        return self

    def begin_epoch(self):
        return self.log.begin_epoch("test")

    def finish(self):
        """Exit codes of the ranks, all their messages heard."""
        try:
            codes = [process.wait(TRAINING_LIMIT_S) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        for reader in self._readers:
            reader.join(LIMIT_S)
        return codes

    def run(self, commits=None):
        codes = self.start(commits).finish()
        assert codes == [0] * self.world_size, self.logs()
        return self

    def logs(self):
        return "\n".join((self.run_dir / f"log{rank}").read_text()[-3000:] for rank in range(self.world_size))

    def wait_for(self, condition):
        """The first message for which `condition` holds."""
        limit = time.monotonic() + TRAINING_LIMIT_S
        with self._changed:
            while True:
                for message in self.messages:
                    if condition(message):
                        return message
                if not self._changed.wait(limit - time.monotonic()):
                    raise AssertionError(f"message did not come: {self.messages[-3:]}\n{self.logs()}")

    def drain(self):
        for clock in self.clocks:
            clock.give(Order.DRAIN)

    def of(self, type_, rank=0):
        return [message for message in self.messages if message["type"] == type_ and message["rank"] == rank]

    def history(self):
        """The deterministic figures by step."""
        names = ("loss", "lr", "grad_norm", "ids_crc")
        return {message["step"]: tuple(message["values"][name] for name in names) for message in self.of("metrics")}

    def losses(self):
        return {step: figures[0] for step, figures in self.history().items()}

    def _listen(self, path):
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(self.world_size)
        self._readers = [threading.Thread(target=self._serve, daemon=True) for _ in range(self.world_size)]
        for reader in self._readers:
            reader.start()

    def _serve(self):
        connection, _ = self._server.accept()
        for line in connection.makefile():
            self._hear(json.loads(line))

    def _hear(self, message):
        with self._changed:
            self.messages.append(message)
            if message["type"] == "staged":
                self.uploader.take({**message, "epoch": self.epoch})
            if message["type"] == "saved":
                self._commit(message)
            self._changed.notify_all()

    def _commit(self, message):
        parts = self._saved.setdefault(message["checkpoint"], [])
        parts.append(message)
        if len(parts) == self.world_size:
            scalars = next(part["job_scalars"] for part in parts if "job_scalars" in part)
            self.commit(message, scalars)

    def commit(self, message, scalars):
        self.log.commit(
            epoch=self.epoch, step=message["step"], prefix=message["checkpoint"], num_writers=self.world_size,
            world_size=message["world_size"], zero_stage=message["zero_stage"], job_scalars=scalars,
        )  # fmt: skip


if __name__ == "__main__":
    from orchestrator.runtime.rank import main

    code = main(RankTask.from_dict(json.loads(Path(sys.argv[1]).read_text())))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as the warm process ends a rank: torch's threads may abort a process that takes itself apart
