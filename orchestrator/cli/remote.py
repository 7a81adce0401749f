"""`train`, `submit` and `resume` where a server keeps the jobs: nothing is started here, and its files are not to be found here."""

from __future__ import annotations

from orchestrator.cli.follow import follow
from orchestrator.cli.keeping import check_storage, secrets_for
from orchestrator.cli.rehearse import rehearsed
from orchestrator.cli.screen import Screen, as_json, command, size
from orchestrator.client.connection import Verbs, connect, server
from orchestrator.code.package import Package, is_kept
from orchestrator.code.submission import packaged
from orchestrator.control.local import LocalCluster
from orchestrator.errors import StorageDenied
from orchestrator.job import Job, job_to_dict
from orchestrator.paths import Home
from orchestrator.spec import JobSpec, StorageSpec
from orchestrator.storage import open_store


def submit_there(spec: JobSpec, *, json: bool, rehearse: int | None, watch: bool) -> int:
    """Returns the exit status."""
    home = Home.find(spec.cluster.home)
    client, screen = connect(home, server()), Screen(beside_json=json)
    secrets = secrets_for(spec, elsewhere=True)
    spec = _with_code(client, spec, spec.storage, home, secrets, screen)
    if status := rehearsed(client, spec, rehearse, secrets, screen, json=json):
        return status
    job = client.submit(spec, secrets)
    if not watch and json:
        print(as_json({"id": job.id, "state": job.state.value}))
        return 0
    screen.say(f"job {job.id} is queued at {server()}")
    if not watch:
        screen.say(f"  follow it:  {command(f'logs -f {job.id}', home)}\n  its state:  {command(f'status {job.id}', home)}")
        return 0
    return _watched(client, job, screen, json)


def resume_there(client: Verbs, job: Job, wanted: JobSpec, screen: Screen, *, new_code: bool, watch: bool, json: bool) -> int:
    """`new_code`: with the working directory as it is now."""
    secrets = secrets_for(wanted, elsewhere=True)
    if new_code:
        wanted = _with_code(client, wanted, _store_of(job), client.home, secrets, screen)
    job = client.resume(job.id, wanted if wanted != job.spec else None, secrets)
    if watch:
        return _watched(client, job, screen, json)
    screen.say(f"{job.id} is queued; follow it: {command(f'logs -f {job.id}', client.home)}")
    if json:
        print(as_json(job_to_dict(job)))
    return 0


def _watched(client: Verbs, job: Job, screen: Screen, json: bool) -> int:
    status = follow(client, job.id, LocalCluster(address=server(), started=False), screen)
    if json:
        print(as_json(job_to_dict(client.job(job.id))))
    return status


def _store_of(job: Job) -> StorageSpec:
    """Where its code goes from here. A folder that does not hold its code on this machine is the server's own store."""
    storage = job.spec.storage
    try:
        here = not storage.url.startswith("file://") or is_kept(open_store(storage), job.spec.workload.package)
    except StorageDenied:
        here = False
    return storage if here else StorageSpec()


def _with_code(client: Verbs, spec: JobSpec, storage: StorageSpec, home: Home, secrets: dict[str, str], screen: Screen) -> JobSpec:
    """With the submitter's working directory in `storage`, if the workload stands in it. A store that can be reached is tried first."""
    if spec.storage.url.startswith("s3://"):
        check_storage(spec, home, secrets)

    def told(package: Package) -> None:
        screen.say(f"packaged {len(package.files)} files of {spec.workload.code_dir}, {size(package.num_bytes)}")

    return packaged(spec, lambda package: client.keep_code(package, storage, secrets), told)
