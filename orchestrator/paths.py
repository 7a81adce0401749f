"""Every place where something is kept. No other module builds a key or a path.

In the object store (`JobKeys`, `DatasetKeys`):

    jobs/<job>/
        spec-<run>.json                              the resolved spec of each run
        lease/<epoch:08d>.json                       create-only: who owns the job
        base/<epoch:08d>.json                        create-only: the commit this epoch went on from
        ckpt/<step:012d>-<epoch:08d>-<ulid>/
            seg-<writer:05d>-<n:04d>                 packed tensor bytes, 4 KiB aligned
            idx/<writer:05d>.json.zst                that writer's slices and block checksums
            MANIFEST.json.zst
        commits/<epoch:08d>-<step:012d>.json         create-only: the only commit point
        suspect/<epoch:08d>-<step:012d>.json         a commit whose bytes were found damaged
        attempts/<epoch:08d>-<step:012d>.json        how often a commit was restored without a step since
        pins/<epoch:08d>-<step:012d>.json            create-only: a commit that retention never deletes
        tombstones/<step:012d>-<epoch:08d>-<ulid>.json  a checkpoint that is about to be deleted, and since when
        chaos/<fault>.json                           create-only: a fault of the chaos mode that is about to be done
        journal/<first seq:012d>.jsonl               metrics and events, in segments
        logs/<epoch:08d>/<rank:05d>/<offset:012d>-<milliseconds:013d>  a piece of a rank's output, and when it was shipped
        artifacts/<name>                             config, evaluation, sample, plots, history
        result-<run>.json                            how the run ended
    code/<content hash>.zip                          a packaged working directory
    code/<content hash>.tombstone.json               no job had it then: it is about to be deleted
    datasets/<name>/
        by-source/<fingerprint>.json                 which content the recipe made of that source
        <content hash>/INDEX.json.zst, <file>        shards and the files beside them

On a machine (`Home`): the control plane's folder, `$ORCHESTRATOR_HOME` or `~/.orchestrator`, made with mode 0700.

    jobs.db                    the job store (SQLite, WAL)
    database                   the URL of the job store where it is another one, mode 0600
    controller.lock            held by the living controller
    cluster.json               the local Ray cluster: address, ports, pids
    token                      Ray's token, mode 0600
    api-token                  the user's token for a server, mode 0600
    plans/<time>-<n>.jsonl     what the scheduler decided and what it knew, to be repeated; the oldest files go
    node-types.yaml            what Ray's autoscaler may start; written by who sets the cluster up
    secrets/<job>.json         the submitter's S3 keys, mode 0600, removed at the job's end
    secrets.lock               held while a job that has ended gets new ones, and while they are removed
    logs/<name>.log            controller, Ray head, warm processes; `<name>.old.log`: what was there before it grew too long
    store/                     the default object store
    mlflow/mlflow.db, artifacts/
    cache/                     data shards of object stores and, in `code/`, unpacked working directories, by content hash
    node/<job>/                sockets, logs of ranks and uploaders, journal of jobs on this machine
    supervisors/<actor>.json   the job that a supervisor has been given, mode 0600, removed at the job's end

In shared memory, or in `node/<job>/` where that is small: `orchestrator-<job>-<bundle>-<rank>.clock` and `...-<rank>-<n>.slab`.
"""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ConfigError

TOKEN_FILE_VARIABLE = "ORCHESTRATOR_TOKEN_FILE"
"""Names the file of a user's token for a server, in place of `api-token` of the home."""
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


JOBS = "jobs/"
CODE = "code/"


def safe_name(name: str) -> str:
    """`name` if it can be one part of a key, else ConfigError."""
    if not _SAFE.fullmatch(name):
        raise ConfigError(f"'{name}' cannot be part of a key: allowed are letters, digits, '.', '_' and '-'.")
    return name


@dataclass(frozen=True)
class JobKeys:
    """Keys of one job in the object store."""

    job_id: str

    @property
    def root(self) -> str:
        return f"{JOBS}{safe_name(self.job_id)}/"

    @property
    def specs(self) -> str:
        return f"{self.root}spec-"

    def spec(self, run: int) -> str:
        return f"{self.specs}{run}.json"

    def result(self, run: int) -> str:
        return f"{self.root}result-{run}.json"

    @property
    def leases(self) -> str:
        return f"{self.root}lease/"

    def lease(self, epoch: int) -> str:
        return f"{self.leases}{epoch:08d}.json"

    @property
    def bases(self) -> str:
        return f"{self.root}base/"

    def base(self, epoch: int) -> str:
        return f"{self.bases}{epoch:08d}.json"

    @property
    def checkpoints(self) -> str:
        return f"{self.root}ckpt/"

    def checkpoint(self, step: int, epoch: int, ulid: str) -> str:
        return f"{self.checkpoints}{step:012d}-{epoch:08d}-{safe_name(ulid)}/"

    @property
    def commits(self) -> str:
        return f"{self.root}commits/"

    def commit(self, epoch: int, step: int) -> str:
        return f"{self.commits}{epoch:08d}-{step:012d}.json"

    @property
    def suspects(self) -> str:
        return f"{self.root}suspect/"

    def suspect(self, epoch: int, step: int) -> str:
        return f"{self.suspects}{epoch:08d}-{step:012d}.json"

    def restore_attempts(self, epoch: int, step: int) -> str:
        return f"{self.root}attempts/{epoch:08d}-{step:012d}.json"

    @property
    def pins(self) -> str:
        return f"{self.root}pins/"

    def pin(self, epoch: int, step: int) -> str:
        return f"{self.pins}{epoch:08d}-{step:012d}.json"

    @property
    def tombstones(self) -> str:
        return f"{self.root}tombstones/"

    def tombstone(self, checkpoint: str) -> str:
        """Of the checkpoint under that prefix."""
        return f"{self.tombstones}{checkpoint.removeprefix(self.checkpoints).rstrip('/')}.json"

    def entombed(self, tombstone: str) -> str:
        """The prefix of the checkpoint that the tombstone is of."""
        return f"{self.checkpoints}{tombstone.removeprefix(self.tombstones).removesuffix('.json')}/"

    @property
    def chaos(self) -> str:
        return f"{self.root}chaos/"

    def fault(self, name: str) -> str:
        return f"{self.chaos}{safe_name(name)}.json"

    @property
    def journal(self) -> str:
        return f"{self.root}journal/"

    def journal_segment(self, first_seq: int) -> str:
        return f"{self.journal}{first_seq:012d}.jsonl"

    @property
    def logs(self) -> str:
        return f"{self.root}logs/"

    def log_pieces(self, epoch: int, rank: int) -> str:
        return f"{self.logs}{epoch:08d}/{rank:05d}/"

    def log_pieces_from(self, epoch: int, rank: int, offset: int) -> str:
        """Prefix of the pieces that begin there."""
        return f"{self.log_pieces(epoch, rank)}{offset:012d}"

    def log_piece(self, epoch: int, rank: int, offset: int, time_s: float) -> str:
        """`offset`: of its first byte; `time_s`: seconds since 1970."""
        return f"{self.log_pieces_from(epoch, rank, offset)}-{round(time_s * 1000):013d}"

    @property
    def artifacts(self) -> str:
        return f"{self.root}artifacts/"

    def artifact(self, name: str) -> str:
        return self.artifacts + safe_name(name)


def step_of(checkpoint: str) -> tuple[int, int]:
    """(epoch, step) of the checkpoint under that prefix, committed or not."""
    step, epoch, _ = checkpoint.rstrip("/").rsplit("/", 1)[1].split("-", 2)
    return int(epoch), int(step)


def commit_of(key: str) -> tuple[int, int]:
    """(epoch, step) in the name of a commit, pin or suspect mark."""
    epoch, step = key.rsplit("/", 1)[1].removesuffix(".json").split("-")
    return int(epoch), int(step)


def lease_of(key: str) -> int:
    """The epoch in the name of a lease."""
    return int(key.rsplit("/", 1)[1].removesuffix(".json"))


def log_piece_of(key: str) -> tuple[int, int, int, float]:
    """(epoch, rank, offset, time in seconds since 1970) in the name of a piece of output; time 0 in one without."""
    epoch, rank, name = key.rsplit("/", 3)[1:]
    offset, _, milliseconds = name.partition("-")
    return int(epoch), int(rank), int(offset), int(milliseconds or 0) / 1000


def segment_key(checkpoint: str, writer: int, number: int) -> str:
    return f"{checkpoint}seg-{writer:05d}-{number:04d}"


def index_key(checkpoint: str, writer: int) -> str:
    return f"{checkpoint}idx/{writer:05d}.json.zst"


def manifest_key(checkpoint: str) -> str:
    return f"{checkpoint}MANIFEST.json.zst"


def code_key(content_hash: str) -> str:
    """Of a packaged working directory."""
    return f"{CODE}{safe_name(content_hash)}.zip"


def code_tombstone(content_hash: str) -> str:
    return f"{CODE}{safe_name(content_hash)}.tombstone.json"


@dataclass(frozen=True)
class DatasetKeys:
    """Keys of one data set in the object store."""

    name: str

    @property
    def root(self) -> str:
        return f"datasets/{safe_name(self.name)}/"

    def by_source(self, fingerprint: str) -> str:
        return f"{self.root}by-source/{safe_name(fingerprint)}.json"

    def content(self, content_hash: str) -> str:
        return f"{self.root}{safe_name(content_hash)}/"

    def index(self, content_hash: str) -> str:
        return f"{self.content(content_hash)}INDEX.json.zst"

    def file(self, content_hash: str, name: str) -> str:
        return self.content(content_hash) + safe_name(name)


@dataclass(frozen=True)
class Home:
    """Folders and files of the control plane on this machine."""

    root: Path

    @classmethod
    def find(cls, configured: str = "") -> Home:
        chosen = configured or os.environ.get("ORCHESTRATOR_HOME") or "~/.orchestrator"
        return cls(Path(chosen).expanduser().resolve())

    @property
    def jobs_db(self) -> Path:
        return self.root / "jobs.db"

    @property
    def api_token(self) -> Path:
        return self.root / "api-token"

    @property
    def database(self) -> Path:
        return self.root / "database"

    @property
    def controller_lock(self) -> Path:
        return self.root / "controller.lock"

    @property
    def cluster_file(self) -> Path:
        return self.root / "cluster.json"

    @property
    def token(self) -> Path:
        return self.root / "token"

    @property
    def node_types(self) -> Path:
        return self.root / "node-types.yaml"

    @property
    def secrets_folder(self) -> Path:
        return self.root / "secrets"

    @property
    def secrets_lock(self) -> Path:
        return self.root / "secrets.lock"

    def secrets(self, job_id: str) -> Path:
        return self.secrets_folder / f"{safe_name(job_id)}.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log(self, name: str) -> Path:
        return self.logs / f"{safe_name(name)}.log"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def plans(self) -> Path:
        return self.root / "plans"

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def node(self, job_id: str) -> Path:
        return self.root / "node" / safe_name(job_id)

    def supervisor(self, actor_name: str) -> Path:
        return self.root / "supervisors" / f"{safe_name(actor_name.replace(':', '.'))}.json"


def make_private(folder: Path) -> None:
    """If it is missing: for its owner alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    make_private(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
