"""Go on from a commit: all ranks from the same one, the newest that no rank finds damaged and that does not kill who reads it."""

from __future__ import annotations

from functools import partial

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.restore import restore
from orchestrator.checkpoints.restore_attempts import MAX_ATTEMPTS, RestoreAttempts
from orchestrator.checkpoints.restore_peers import agreed
from orchestrator.errors import CheckpointError, ConfigError, CorruptObject, DataError, ObjectNotFound
from orchestrator.paths import JobKeys, manifest_key
from orchestrator.runtime import ema
from orchestrator.runtime.collective import broadcast_bytes
from orchestrator.runtime.exchange import Ranks
from orchestrator.runtime.link import Phase
from orchestrator.runtime.seeding import seed_rank, set_random_states
from orchestrator.runtime.selection import selection_of
from orchestrator.runtime.training import Training
from orchestrator.spec import SIZES
from orchestrator.storage import MemoryStore


def restore_newest(run: Training) -> None:
    """Put the state of the newest good commit of the task into `run`; nothing if the task names none. All ranks come to the same.

    A commit that was tried `MAX_ATTEMPTS` times without a step since is passed over, unless it is the last one. Raises CheckpointError if
    all are damaged, DataError for another data set, ConfigError for another seed, IncompatibleCheckpoint for another model, optimizer or
    job, and the store's StorageError.
    """
    if not run.task.commits:
        return
    ranks = Ranks(run.engine.device)
    for key in run.task.commits:
        run.clock.tick(0, Phase.RESTORE)
        try:
            _begin_attempt(run, ranks, key)
            manifest = _load(run, ranks, key)
        except (CorruptObject, ObjectNotFound) as error:  # the same on every rank
            run.link.send("suspect", commit=key, message=str(error))
            continue
        _go_on(run, manifest)
        run.restored_commit = key
        run.link.send("restored", step=run.step, commit=key)
        return
    raise CheckpointError(f"all {len(run.task.commits)} commits of {run.task.job_id} are damaged: {', '.join(run.task.commits)}.")


def end_attempt(run: Training) -> None:
    """Call it when a step was made from what was restored: the commit is no suspect. Any rank may call it, and more than once."""
    if run.restored_commit and run.task.rank == 0:
        RestoreAttempts(run.store, JobKeys(run.task.job_id), run.restored_commit).forget()
    run.restored_commit = ""


def _begin_attempt(run: Training, ranks: Ranks, key: str) -> None:
    """Raises CorruptObject if it is one too many."""
    with agreed(ranks):
        if run.task.rank == 0:
            attempts = RestoreAttempts(run.store, JobKeys(run.task.job_id), key)
            if attempts.count() >= MAX_ATTEMPTS and key != run.task.commits[-1]:
                raise CorruptObject(f"'{key}' was restored {attempts.count()} times without a step after it: it is passed over.")
            attempts.note()


def _load(run: Training, ranks: Ranks, key: str) -> Manifest:
    """Fill this rank's tensors from a commit. Raises CorruptObject or ObjectNotFound if it is damaged."""
    manifest = _manifest(run, ranks, key)
    _check_same_job(run, manifest)
    wanted = _held(manifest, run.engine.state.wanted_pieces())
    tick = partial(run.clock.tick, 0, Phase.RESTORE)
    restore(run.store, manifest, wanted, ranks, tick=tick, needless=(ema.ROLE,))
    return manifest


def _manifest(run: Training, ranks: Ranks, key: str) -> Manifest:
    """Rank 0 reads it for all."""
    keys, found = JobKeys(run.task.job_id), MemoryStore()
    commit = content = b""
    with agreed(ranks):
        if run.task.rank == 0:
            commit = run.store.get(key)
            content = run.store.get(manifest_key(CommitLog(run.store, keys).read(key).prefix))
    found.put(key, broadcast_bytes(commit, run.engine.device))
    log = CommitLog(found, keys)
    ref = log.read(key)
    found.put(manifest_key(ref.prefix), broadcast_bytes(content, run.engine.device))
    return log.load_manifest(ref)


def _held(manifest: Manifest, wanted: list[StatePiece]) -> list[StatePiece]:
    """Without the average of the weights, if the job has kept one only since."""
    return wanted if _has_average(manifest) else [piece for piece in wanted if piece.role != ema.ROLE]


def _has_average(manifest: Manifest) -> bool:
    return any(piece.role == ema.ROLE for piece in manifest.slices)


def _check_same_job(run: Training, manifest: Manifest) -> None:
    held, found = manifest.job_scalars["dataset"], run.dataset.content_hash
    if held != found:
        raise DataError(
            f"the checkpoint of step {manifest.step} was trained on data set {held}, but the source now makes data set {found}: "
            "the data were edited. Put them back, or start a new job."
        )
    held, seed = manifest.job_scalars["seed"], run.spec.training.seed
    if held != seed:
        raise ConfigError(f"training.seed={seed} is not possible: the job was begun with training.seed={held}, which orders its data.")


def _go_on(run: Training, manifest: Manifest) -> None:
    scalars = manifest.job_scalars
    run.engine.state.after_restore()
    if not _has_average(manifest):
        run.engine.average.begin()
    run.engine.state.set_counters(scalars)
    run.step = run.saved_step = int(scalars["step"])
    run.position = int(scalars["position"])
    run.guard.go_on(run.position, scalars["losses"])
    run.evaluation_before = scalars["evaluation_before"]
    run.selection = selection_of(run.spec, scalars.get("selection"))
    sizes = {name: getattr(run.layout, name) for name in SIZES}
    if (manifest.world_size, scalars["sizes"]) == (run.layout.world_size, sizes):
        set_random_states(manifest.rank_scalars[run.task.rank]["random"])
    else:
        rank = run.task.rank
        seed_rank(run.spec.training.seed, run.step, run.layout.sequence_data_parallel_rank(rank), run.layout.pipeline_stage(rank))
