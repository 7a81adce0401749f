"""Go on from a commit: all ranks from the same one, the newest that no rank finds damaged."""

from __future__ import annotations

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.pieces import StatePiece
from orchestrator.checkpoints.restore import restore
from orchestrator.errors import CheckpointError, ConfigError, CorruptObject, DataError, ObjectNotFound
from orchestrator.paths import JobKeys
from orchestrator.runtime import ema
from orchestrator.runtime.collective import all_agree
from orchestrator.runtime.link import Phase
from orchestrator.runtime.seeding import seed_rank, set_random_states
from orchestrator.runtime.selection import selection_of
from orchestrator.runtime.training import Training
from orchestrator.spec import SIZES


def restore_newest(run: Training) -> None:
    """Put the state of the newest good commit of the task into `run`; nothing if the task names none.

    Raises CheckpointError if all are damaged, DataError for another data set, ConfigError for another seed,
    IncompatibleCheckpoint for another model.
    """
    for key in run.task.commits:
        run.clock.tick(0, Phase.CHECKPOINT)
        manifest = _try(run, key)
        if all_agree(manifest is not None, run.engine.device) and manifest is not None:
            _go_on(run, manifest)
            run.link.send("restored", step=run.step, commit=key)
            return
    if run.task.commits:
        raise CheckpointError(f"all {len(run.task.commits)} commits of {run.task.job_id} are damaged: {', '.join(run.task.commits)}.")


def _try(run: Training, key: str) -> Manifest | None:
    """Fill this rank's tensors from a commit; None if it is damaged, which the agent is told."""
    log = CommitLog(run.store, JobKeys(run.task.job_id))
    try:
        manifest = log.load_manifest(log.read(key))
        _check_same_job(run, manifest)
        restore(run.store, manifest, _held(manifest, run.engine.state.wanted_pieces()))
    except (CorruptObject, ObjectNotFound) as error:
        run.link.send("suspect", commit=key, message=str(error))
        return None
    return manifest


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
    run.evaluation_before = scalars["evaluation_before"]
    run.selection = selection_of(run.spec, scalars.get("selection"))
    sizes = {name: getattr(run.layout, name) for name in SIZES}
    if (manifest.world_size, scalars["sizes"]) == (run.layout.world_size, sizes):
        set_random_states(manifest.rank_scalars[run.task.rank]["random"])
    else:
        rank = run.task.rank
        seed_rank(run.spec.training.seed, run.step, run.layout.sequence_data_parallel_rank(rank), run.layout.pipeline_stage(rank))
