"""Where the checkpoints of a job are: asked of this machine's jobs, or of an object store alone."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import islice

from orchestrator.checkpoints.catalog import Catalog, Entry
from orchestrator.cli.parser import client_for, parser_for
from orchestrator.errors import CheckpointError, JobNotFound, UserError, nearest
from orchestrator.paths import JOBS, JobKeys
from orchestrator.spec import JobSpec, StorageSpec, from_dict
from orchestrator.storage import ObjectStore, open_store

_LOOKED_AT = 100_000
"""Objects of a store that are looked at for the names of its jobs."""


@dataclass(frozen=True)
class Place:
    store: ObjectStore
    keys: JobKeys
    spec: JobSpec
    """With the storage of `store`."""


def place_parser(verb: str, about: str) -> argparse.ArgumentParser:
    parser = parser_for(f"checkpoint {verb}", about)
    parser.add_argument("job", help="its id, or the beginning of it")
    parser.add_argument(
        "--storage", default="", metavar="URL", help="look here instead of asking this machine's jobs: s3://... or file://..."
    )
    parser.add_argument("--endpoint-url", default="", metavar="URL", help="with --storage: of an S3-compatible server")
    parser.add_argument("--json", action="store_true")
    return parser


def place_of(asked: argparse.Namespace) -> Place:
    """Raises JobNotFound, ConfigError for a URL that is none, StorageError."""
    if asked.endpoint_url and not asked.storage:
        raise UserError(f"--endpoint-url={asked.endpoint_url} goes with --storage s3://bucket/prefix, which is not given.")
    if not asked.storage:
        job = client_for(asked.home, asked.job).job(asked.job)
        return Place(open_store(job.spec.storage), JobKeys(job.id), job.spec)
    storage = StorageSpec(url=asked.storage, endpoint_url=asked.endpoint_url)
    store = open_store(storage)
    keys = JobKeys(_job_in(store, asked.job))
    return Place(store, keys, _spec_in(store, keys, storage))


def _job_in(store: ObjectStore, given: str) -> str:
    """The job whose id is `given`, or the only one that begins with it."""
    if next(iter(store.list(JobKeys(given).root)), None) is not None:
        return given
    matches = _ids(store, f"{JOBS}{given}")
    if len(matches) > 1:
        raise JobNotFound(f"'{given}' fits {len(matches)} jobs: {', '.join(matches[-10:])}. Give more of the name.")
    if not matches:
        raise JobNotFound(f"no job is named '{given}' in {store.url}.{nearest(given, _ids(store, JOBS))}")
    return matches[0]


def _ids(store: ObjectStore, prefix: str) -> list[str]:
    found = (info.key.removeprefix(JOBS).partition("/") for info in islice(store.list(prefix), _LOOKED_AT))
    return sorted({job for job, slash, _ in found if slash})


def _spec_in(store: ObjectStore, keys: JobKeys, storage: StorageSpec) -> JobSpec:
    """That of the newest run."""
    runs = [int(info.key.removeprefix(keys.specs).removesuffix(".json")) for info in store.list(keys.specs)]
    if not runs:
        raise CheckpointError(f"{keys.job_id} has not begun to run: '{keys.spec(1)}' is not in {store.url}.")
    values = json.loads(store.get(keys.spec(max(runs))))
    return from_dict(JobSpec, {**values, "storage": {"url": storage.url, "endpoint_url": storage.endpoint_url}})


def chosen(catalog: Catalog, step: int | None, job_id: str) -> Entry:
    """The newest good commit, or that of a step: of several, after a rewind, the one that counts. Raises CheckpointError."""
    if step is None:
        good = [entry for entry in catalog.entries if entry.good]
        if not good:
            raise CheckpointError(_nothing_good(catalog, job_id))
        return min(good, key=lambda entry: entry.tombstone_s is not None)
    of_step = [entry for entry in catalog.entries if entry.ref.step == step]
    if not of_step:
        raise UserError(f"{job_id} has no checkpoint of step {step}; there {_those(catalog)}.")
    return min(of_step, key=lambda entry: entry.abandoned)


def _nothing_good(catalog: Catalog, job_id: str) -> str:
    if not catalog.entries:
        return f"{job_id} has no committed checkpoint yet."
    return f"{job_id} has no good checkpoint: {'; '.join(f'step {entry.ref.step}: {why(entry)}' for entry in catalog.entries)}"


def why(entry: Entry) -> str:
    return entry.fault or ("marked suspect" if entry.suspect else "the job went back behind it")


def _those(catalog: Catalog) -> str:
    steps = sorted({entry.ref.step for entry in catalog.entries})
    return f"are {', '.join(map(str, steps))}" if steps else "is none"
