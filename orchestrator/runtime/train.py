"""The training loop of a rank, top to bottom."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ulid import ULID

from orchestrator.data.loader import TrainLoader
from orchestrator.data.order import ids_at
from orchestrator.paths import JobKeys
from orchestrator.runtime.artifacts import write_sample
from orchestrator.runtime.cadence import Ballot
from orchestrator.runtime.collective import broadcast_text, sum_over_ranks
from orchestrator.runtime.compute_time import ComputeTime
from orchestrator.runtime.engine import StepReport
from orchestrator.runtime.evaluate import Evaluation, evaluate
from orchestrator.runtime.guard import check_replicas
from orchestrator.runtime.link import Order, Phase
from orchestrator.runtime.metrics import memory
from orchestrator.runtime.pace import Pace
from orchestrator.runtime.profiling import StepProfiler
from orchestrator.runtime.resume import end_attempt
from orchestrator.runtime.schedule import learning_rate
from orchestrator.runtime.seeding import random_states
from orchestrator.runtime.selection import figure, judged
from orchestrator.runtime.training import Training, put_artifact
from orchestrator.spec import SIZES


def train(run: Training) -> bool:
    """Train until the job has ended, or until an order to drain. Returns whether it was the order; all state is saved then too."""
    num_draws = getattr(run.workload, "draws_per_sample", 0)
    loader = TrainLoader(run.dataset, run.layout, run.task.rank, run.spec.training.seed, num_draws)
    profiler = StepProfiler(run.spec.training.profile_steps if run.task.rank == 0 else (), run.engine.device)
    pace, ballot, stop, is_time = Pace(), Ballot(run.step), False, False
    compute = ComputeTime(run.layout, run.task.rank, run.step, on_device=run.engine.device.type == "cuda")
    if run.step == 0:
        before = _evaluate(run).values
        figure(before, run.selection.metric)
        run.evaluation_before = _json_ready(before)
    if not run.ended and run.task.rank == 0:
        run.link.send("started", first_step=run.step + 1)
    run.meter.restart(run.step, run.position)
    while not run.ended and not stop:
        step, began_s = run.step + 1, time.monotonic()
        run.position = run.task.after_skipped(run.position)
        run.tick(step, Phase.DATA)
        compute.begin()
        profiler.begin(step)
        lr = learning_rate(run.spec.optimizer, run.max_steps, step)
        samples = run.spec.training.batch_size_at(run.position)
        run.engine.set_batch_size(samples)
        report = run.engine.step(loader.micro_batches(run.position, samples), lr, partial(_tick, run, compute, step))
        compute.end()
        begun_at, run.step, run.position = run.position, step, run.position + samples
        _look(run, report)
        end_attempt(run)
        for name, content in profiler.end(step).items():
            put_artifact(run, name, content)
        is_log_step = step % run.spec.training.log_interval_steps == 0 or step == run.max_steps
        if is_log_step or ballot.is_due(step) or run.cadence.is_step(step) or _evaluation_is_due(run):
            loss_sum, stop, is_time = _vote(run, ballot, compute, float(report.loss) if is_log_step else None)
        if is_log_step and run.task.rank == 0:
            _log(run, report, loss_sum, lr, begun_at, compute.newest)
        if (step_p99_s := pace.add(time.monotonic() - began_s, is_log_step)) is not None:
            run.clock.learn(step_p99_s)
        is_best = _evaluation_is_due(run) and _judge(run, _evaluate(run))
        if run.cadence.is_step(step) or run.ended or stop or is_best or is_time:
            save(run)
            is_time = False
    if run.ended and run.last_evaluation is None:
        _evaluate(run)  # restored at the end
    run.staging.finish()
    end_attempt(run)  # restored at the end
    return not run.ended


def _tick(run: Training, compute: ComputeTime, step: int, phase: Phase) -> None:
    compute.tick(phase)
    if phase is Phase.OPTIMIZER and run.staging.copying:  # changes what a save before this step still copies
        run.tick(step, Phase.CHECKPOINT)
        run.staging.finish()
    run.tick(step, phase)


def _look(run: Training, report: StepReport) -> None:
    """At what the step has made. Raises ReplicaDrift on all ranks."""
    run.guard.watch(report.loss, report.grad_norm)
    every = run.spec.replica_check_steps
    if every and run.step % every == 0:
        _compare(run)


def _compare(run: Training) -> None:
    """The copies that all ranks hold, unless it was done. Raises ReplicaDrift on all ranks."""
    if run.spec.replica_check_steps and run.compared_step != run.step:
        run.tick(run.step, Phase.COLLECTIVE)
        check_replicas(run.step, run.engine.replicated())
        run.compared_step = run.step


def _vote(run: Training, ballot: Ballot, compute: ComputeTime, loss: float | None) -> tuple[float, bool, bool]:
    """Returns the sum of `loss` over the ranks, whether any of them was ordered to stop, and whether it is time for a save, which it is
    not while an earlier one is on its way. `loss`: None where it is not a log step. Raises NotFinite, LossSpike on all ranks."""
    run.tick(run.step, Phase.COLLECTIVE)
    leads = run.task.rank == 0
    ordered = float(run.clock.order() is Order.DRAIN)
    is_time = float(leads and run.cadence.is_time())
    steps = float(leads and ballot.steps_to_next(run.step))
    mine = [loss or 0.0, ordered, is_time, float(run.staging.busy), steps, *run.guard.votes]
    computed = compute.close(run.step) if compute.is_due(run.step) else []
    loss_sum, stops, times, busy, steps, bad_losses, bad_norms, *seconds = sum_over_ranks([*mine, *computed], run.engine.device)
    ballot.held(run.step, int(steps))
    if seconds and leads:
        run.link.send("computed", step=run.step, **compute.told(seconds))
    mean = None if loss is None else loss_sum / run.task.world_size
    run.guard.check(run.step, run.position, bad_losses, bad_norms, mean)
    return loss_sum, stops > 0, times > 0 and not busy


def _log(
    run: Training, report: StepReport, loss_sum: float, lr: float, begun_at: int, computed: Mapping[str, float]
) -> None:  # fmt: skip
    """Report the figures of the step that began at the global sample `begun_at`. `computed`: of the ranks' own compute times.

    The ranks of a tensor-parallel group report the same loss, those of a sequence that of as many positions each, so the mean over all
    ranks is that over the samples.
    """
    values = {
        "loss": loss_sum / run.task.world_size,
        "lr": lr,
        "grad_norm": float(report.grad_norm),
        "ids_crc": _ids_crc(run, begun_at),
        "skipped_steps": float(run.engine.skipped_steps),
        **run.engine.loss_scale(),
        **memory(run.engine.device),
        **run.meter.figures(run.step, run.position),
        **computed,
        "checkpoint_stall_s": run.staging.stalled_s,
        "samples": float(run.position),
        "tokens": float(run.position * run.workload.tokens_per_sample),
    }
    run.link.send("metrics", step=run.step, values=values)


def _ids_crc(run: Training, begun_at: int) -> float:
    """CRC-32 of the step's global sample ids: what makes a lost or repeated sample visible."""
    ids = ids_at(begun_at, run.position - begun_at, run.dataset.num_samples("train"), run.spec.training.seed)
    return float(zlib.crc32(np.asarray(ids, dtype="<i8").tobytes()))


def _evaluation_is_due(run: Training) -> bool:
    every = run.spec.training.eval_interval_steps
    return run.step == run.max_steps or (every > 0 and run.step % every == 0)


def _evaluate(run: Training) -> Evaluation:
    tick = partial(run.tick, run.step, Phase.EVALUATION)
    tick()
    run.staging.finish()  # an average may take the place of the weights
    with run.engine.average.swapped_in():
        run.last_evaluation = evaluate(run.engine, run.workload, run.dataset, run.spec, run.step, tick)
        if run.spec.training.sample_at_evaluation:
            write_sample(run, f"sample-{run.step}.txt")
    if run.task.rank == 0:
        run.link.send("evaluated", step=run.step, values=run.last_evaluation.values)
    return run.last_evaluation


def _judge(run: Training, evaluation: Evaluation) -> bool:
    """Whether its step is to be kept as one of the best. All ranks come to the same: they have the same figures."""
    run.selection = judged(run.selection, run.spec, run.step, figure(evaluation.values, run.selection.metric))
    return run.spec.checkpoint.keep_best > 0 and run.selection.has(run.step)


def save(run: Training) -> None:
    """Stage this step's checkpoint, unless that was done. The supervisor commits it when the uploaders have said `saved` for all ranks."""
    if run.saved_step == run.step:
        return
    _compare(run)  # a save keeps one of the copies
    tick, began = partial(run.tick, run.step, Phase.CHECKPOINT), time.monotonic()
    tick()
    state = run.engine.state
    state.average_buffers()
    ulid = broadcast_text(str(ULID()), run.engine.device)
    prefix = JobKeys(run.task.job_id).checkpoint(run.step, run.task.epoch, ulid)
    told = {"step": run.step, "checkpoint": prefix, "writer": run.task.rank, "zero_stage": run.layout.zero_stage}
    told |= {"world_size": run.task.world_size, **({"job_scalars": job_scalars(run)} if run.task.rank == 0 else {})}
    told["spent_s"] = run.clock.spent().by_phase_s

    def done(slab: Path) -> None:
        cost = {"num_bytes": run.staging.num_bytes, "stage_s": time.monotonic() - began}
        run.link.send("staged", slab=str(slab), **told, **cost)

    run.staging.stage(
        state.owned_pieces(), state.constant_pieces, tick, done, job_id=run.task.job_id, epoch=run.task.epoch, step=run.step,
        prefix=prefix, writer=run.task.rank, scalars={"random": random_states()},
    )  # fmt: skip
    run.saved_step = run.step
    run.cadence.saved(run.staging.stalled_s)


def job_scalars(run: Training) -> dict[str, Any]:
    """What is the same for all ranks; goes into the manifest as JSON."""
    return {
        "step": run.step,
        "position": run.position,
        "seed": run.spec.training.seed,
        "dataset": run.dataset.content_hash,
        "world_size": run.task.world_size,
        "sizes": {name: getattr(run.layout, name) for name in SIZES},
        "precision": run.engine.precision.value,
        "evaluation_before": run.evaluation_before,
        "losses": run.guard.losses,
        "selection": run.selection.to_dict(),
        "evaluated": _figure_of_this_step(run),
        **run.engine.state.counters(),
    }


def _figure_of_this_step(run: Training) -> dict[str, Any] | None:
    """What the checkpoint is compared with others by; None if this step was not evaluated."""
    evaluation, metric = run.last_evaluation, run.selection.metric
    if evaluation is None or evaluation.step != run.step:
        return None
    return {"metric": metric, "value": figure(evaluation.values, metric)}


def _json_ready(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
