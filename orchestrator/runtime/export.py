"""The model of a job's newest commit as a folder that other programs read: `python -m orchestrator.runtime.export FOLDER < JOB`.

JOB is JSON: the job's id, its spec with storage.url filled in, and whether only its adapters are wanted. A program of its own, because the
command line never imports torch.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.restore import export_tensors
from orchestrator.data.loader import open_dataset
from orchestrator.errors import CheckpointError, IncompatibleCheckpoint, OrchestratorError, UserError
from orchestrator.paths import JobKeys
from orchestrator.runtime.entrypoint import load_workload
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import ObjectStore, open_store


def export(store: ObjectStore, job_id: str, spec: JobSpec, folder: Path, cache_dir: Path, adapters: bool = False) -> int:
    """Write the folder, of the `adapters` alone or of the whole model; returns its step.

    Raises UserError for a workload that does not offer it, CheckpointError without a commit.
    """
    workload = load_workload(spec)
    method, what = ("export_adapters", "adapters are") if adapters else ("export", "model is")
    write = getattr(workload, method, None)
    if write is None:
        raise UserError(f"the workload {spec.workload.entrypoint} does not say how its {what} exported: it has no method {method}.")
    log = CommitLog(store, JobKeys(job_id))
    commits = log.chain()
    if not commits:
        raise CheckpointError(f"{job_id} has no committed checkpoint yet.")
    manifest = log.load_manifest(commits[0])
    dataset = open_dataset(store, spec.data.name, manifest.job_scalars["dataset"], cache_dir)
    model = workload.build_model(dataset)
    _fill(dict(model.named_parameters()), export_tensors(store, manifest), job_id)
    buffers = export_tensors(store, manifest, "buffer")
    _fill({name: model.get_buffer(name) for name in buffers}, buffers, job_id)
    write(model.eval(), dataset, folder)
    return manifest.step


@torch.no_grad()
def _fill(targets: dict[str, torch.Tensor], stored: dict[str, Any], job_id: str) -> None:
    differing = sorted(targets.keys() ^ stored.keys())
    if differing:
        raise IncompatibleCheckpoint(f"the checkpoint of {job_id} is of another model: {', '.join(differing[:3])} is on one side only.")
    for name, target in targets.items():
        target.copy_(torch.from_numpy(stored[name]))


def main() -> int:
    os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed, which transformers imports, looks for one and says so
    job = json.load(sys.stdin)
    spec: JobSpec = from_dict(JobSpec, job["spec"])
    try:
        with tempfile.TemporaryDirectory() as cache_dir:
            step = export(open_store(spec.storage), job["id"], spec, Path(sys.argv[1]), Path(cache_dir), job["adapters"])
    except OrchestratorError as error:
        sys.stderr.write(f"orchestrator: {error}\n")
        return error.exit_code
    what = f"the adapters of {job['id']} at step {step} are" if job["adapters"] else f"{job['id']} at step {step} is"
    sys.stdout.write(f"{what} in {sys.argv[1]}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
