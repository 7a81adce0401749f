"""A rank's life: join the group, get the data, build, restore, train, evaluate, leave."""

from __future__ import annotations

import datetime
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from orchestrator.checkpoints.near import NearStore
from orchestrator.checkpoints.stage import StagingRing
from orchestrator.code.requirements import check_requirements
from orchestrator.data.loader import Dataset, open_dataset
from orchestrator.data.prepare import ensure_dataset
from orchestrator.errors import LayoutError
from orchestrator.layout import Layout, legal
from orchestrator.runtime.accelerator import choose_device, gpu_identity
from orchestrator.runtime.artifacts import write_final
from orchestrator.runtime.cadence import Cadence
from orchestrator.runtime.chaos import StrikingClock, progress_clock
from orchestrator.runtime.collective import broadcast_text
from orchestrator.runtime.disk import own_folder
from orchestrator.runtime.engine import Engine, disable_shared_memory_op
from orchestrator.runtime.entrypoint import load_workload, with_code, workload_file
from orchestrator.runtime.failure import describe
from orchestrator.runtime.guard import Guard
from orchestrator.runtime.initialise import build_model
from orchestrator.runtime.link import AgentLink, Phase
from orchestrator.runtime.metrics import Meter, device_name, flops_per_sample, measure_flops_per_s, peak_flops_per_s
from orchestrator.runtime.notice import on_sigterm
from orchestrator.runtime.ops import load_op, needed
from orchestrator.runtime.rendezvous import await_store
from orchestrator.runtime.resume import restore_newest
from orchestrator.runtime.seeding import seed_rank
from orchestrator.runtime.selection import selection_of
from orchestrator.runtime.sequence_parallel import fields_of
from orchestrator.runtime.task import RankTask
from orchestrator.runtime.train import train
from orchestrator.runtime.training import Training
from orchestrator.spec import JobSpec, Offload, from_dict
from orchestrator.storage import ObjectStore, open_store
from orchestrator.workload import Workload

_COLLECTIVE_TIMEOUT = datetime.timedelta(days=30)  # a dead or hanging peer is found from outside, within seconds


def main(task: RankTask) -> int:
    """Do all that `task` says; the exit code of the process. An error is told to the agent before 1 is returned."""
    link = AgentLink(Path(task.agent_socket), task.rank)
    link.send("hello", pid=os.getpid(), host=socket.gethostname())
    on_sigterm(partial(link.send, "preempted"))
    where = ""
    try:
        spec: JobSpec = from_dict(JobSpec, task.spec)
        check_requirements(spec.environment.requirements)
        spec = with_code(spec, Path(task.cache_dir))
        where = workload_file(spec)
        _live(task, spec, link)
    except BaseException as error:  # noqa: BLE001  whatever it is, the agent must hear why
        failure = describe(error, where)
        sys.stderr.write(failure["traceback"])
        sys.stderr.flush()
        link.send("error", **failure)
        return 1
    finally:
        link.close()
    return 0


def _live(task: RankTask, spec: JobSpec, link: AgentLink) -> None:
    clock = progress_clock(task, spec, link)
    clock.tick(0, Phase.START)
    layout = _layout(spec, task.world_size)
    device = _join_group(task, spec)
    if device.type == "cuda":
        link.send("device", gpu=gpu_identity(device))
    workload = load_workload(spec)
    sequence_fields = fields_of(workload, layout)
    store = open_store(spec.storage)
    for op, flag in needed(spec.parallelism).items():
        load_op(op, flag)
    with _disk(task, spec) as disk:
        dataset = _dataset(task, spec, workload, store, link, device)
        engine, meter = _engine(workload, dataset, spec, layout, device, sequence_fields, disk, link)
        seed_rank(spec.training.seed, 0, layout.sequence_data_parallel_rank(task.rank), layout.pipeline_stage(task.rank))
        staging = StagingRing(Path(task.slab_folder), f"{task.slab_stem}-{task.rank}", spec.checkpoint.buffers)
        near = NearStore(store, Path(task.slab_folder), task.slab_stem)
        cadence = Cadence(spec.checkpoint, nodes=-(-task.world_size // task.local_world_size))
        guard = Guard(spec.guard, engine.precision)
        run = Training(
            task, spec, layout, workload, near, dataset, engine, link, clock, meter, selection_of(spec), staging, cadence, guard
        )
        if isinstance(clock, StrikingClock):
            clock.replicated = engine.replicated
        restore_newest(run)
        run.store = store  # the slabs are to be written again
        staging.prepare(engine.state.owned_pieces())
        stopped = train(run)
        if not stopped:
            write_final(run)
        staging.drain(partial(clock.tick, run.step, Phase.CHECKPOINT))
    clock.tick(run.step, Phase.END)
    dist.barrier()
    link.send("done", step=run.step, stopped=stopped, why=run.why_early)
    dist.destroy_process_group()


def _layout(spec: JobSpec, world_size: int) -> Layout:
    layouts = {layout.world_size: layout for layout in legal(spec)}
    if world_size not in layouts:
        raise LayoutError(f"{world_size} workers cannot share a batch of this job; possible are {', '.join(map(str, layouts))}.")
    return layouts[world_size]


def _join_group(task: RankTask, spec: JobSpec) -> torch.device:
    """Threads, environment, process group; returns this rank's device."""
    torch.set_num_threads(spec.resources.threads_per_worker)
    os.environ.update(
        RANK=str(task.rank),
        WORLD_SIZE=str(task.world_size),
        LOCAL_RANK=str(task.local_rank),
        LOCAL_SIZE=str(task.local_world_size),
        LOCAL_WORLD_SIZE=str(task.local_world_size),
        MASTER_ADDR=task.master_address,
        MASTER_PORT=str(task.master_port),
    )
    if task.master_address.startswith("127.") and "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host's name may not lead back to this machine
    device = choose_device(spec.resources.gpus_per_worker, task.local_rank)
    if task.rank:
        await_store(task.master_address, task.master_port)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=task.rank, world_size=task.world_size, timeout=_COLLECTIVE_TIMEOUT)
    return device


def _disk(task: RankTask, spec: JobSpec) -> AbstractContextManager[Path | None]:
    """This rank's folder for state that lies in files; None for a job without."""
    if spec.parallelism.offload_optimizer is not Offload.nvme:
        return nullcontext()
    return own_folder(Path(spec.parallelism.nvme_path), f"{task.job_id}-{task.rank}")


def _dataset(task: RankTask, spec: JobSpec, workload: Workload, store: ObjectStore, link: AgentLink, device: torch.device) -> Dataset:
    """Rank 0 prepares what was never prepared; all open the same content."""
    content_hash = ""
    if task.rank == 0:
        link.send("phase", text="loading data")
        content_hash = ensure_dataset(store, workload, spec, lambda text: link.send("phase", text=text))
        link.send("prepared", dataset=content_hash)
    content_hash = broadcast_text(content_hash, device)
    return open_dataset(store, spec.data.name, content_hash, Path(task.cache_dir))


def _engine(
    workload: Workload, dataset: Dataset, spec: JobSpec, layout: Layout, device: torch.device, sequence_fields: Mapping[str, int],
    disk: Path | None, link: AgentLink,
) -> tuple[Engine, Meter]:  # fmt: skip
    """Nobody else may hold on to the model: of a pipeline, the engine keeps this rank's layers only."""
    model, initialise = build_model(workload, dataset, spec.training.seed)
    if dist.get_rank() == 0:
        link.send("phase", text=_sizes(model))
    flops = flops_per_sample(workload, model)
    disable_shared_memory_op()
    engine = Engine(
        model, workload.loss, spec, layout, device, layers=getattr(workload, "layers", None), sequence_fields=sequence_fields,
        initialise=initialise, disk=disk,
    )  # fmt: skip
    return engine, _meter(workload, spec, engine, flops)


def _sizes(model: torch.nn.Module) -> str:
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{total:,} parameters" + (f", {trained:,} of them trained" if trained < total else "")


def _meter(workload: Workload, spec: JobSpec, engine: Engine, flops: float) -> Meter:
    world, tokens = engine.layout.world_size, workload.tokens_per_sample
    peak = peak_flops_per_s(device_name(engine.device), engine.precision)
    on_gpu = engine.device.type == "cuda"  # a CPU would take seconds for it
    measured = measure_flops_per_s(engine.device, engine.dtype) if on_gpu else 0.0
    sent = engine.sent_bytes(spec, tokens)
    return Meter(tokens, flops, peak * world, measured_flops_per_s=measured * world, sent_bytes=sent)
