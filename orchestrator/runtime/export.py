"""A job's commit as a folder that other programs read: `python -m orchestrator.runtime.export FOLDER < JOB`.

JOB is JSON: `id` of the job, its `spec` with storage.url filled in, key of the `commit`, `format`, and whether only its `adapters` are
wanted. What comes out is JSON too, a line each: `{"total": bytes}` and `{"bytes": written}` where that is known, at the end
`{"message": ...}`. A program of its own, because the command line never imports torch.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

import torch

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.restore import export_tensors
from orchestrator.data.loader import open_dataset
from orchestrator.errors import IncompatibleCheckpoint, OrchestratorError, UserError
from orchestrator.paths import JobKeys
from orchestrator.runtime.entrypoint import load_workload
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import ObjectStore, open_store


def export(
    store: ObjectStore, job_id: str, spec: JobSpec, manifest: Manifest, folder: Path, cache_dir: Path, adapters: bool = False
) -> None:  # fmt: skip
    """Write the folder that transformers reads, of the `adapters` alone or of the whole model.

    Raises UserError for a workload that does not offer it.
    """
    workload = load_workload(spec)
    method, what = ("export_adapters", "adapters are") if adapters else ("export", "model is")
    write = getattr(workload, method, None)
    if write is None:
        raise UserError(f"the workload {spec.workload.entrypoint} does not say how its {what} exported: it has no method {method}.")
    dataset = open_dataset(store, spec.data.name, manifest.job_scalars["dataset"], cache_dir)
    model = workload.build_model(dataset)
    _fill(dict(model.named_parameters()), export_tensors(store, manifest), job_id)
    buffers = export_tensors(store, manifest, "buffer")
    _fill({name: model.get_buffer(name) for name in buffers}, buffers, job_id)
    write(model.eval(), dataset, folder)


@torch.no_grad()
def _fill(targets: dict[str, torch.Tensor], stored: dict[str, Any], job_id: str) -> None:
    differing = sorted(targets.keys() ^ stored.keys())
    if differing:
        raise IncompatibleCheckpoint(f"the checkpoint of {job_id} is of another model: {', '.join(differing[:3])} is on one side only.")
    for name, target in targets.items():
        target.copy_(torch.from_numpy(stored[name]))


def main() -> int:
    os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed, which transformers imports, looks for one and says so
    job, folder = json.load(sys.stdin), Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # DeepSpeed prints to stdout when it is imported
    spec: JobSpec = from_dict(JobSpec, job["spec"])
    try:
        store = open_store(spec.storage)
        log = CommitLog(store, JobKeys(job["id"]))
        manifest = log.load_manifest(log.read(job["commit"]))
        if job["format"] == "deepspeed-universal":
            _export_universal(store, manifest, folder, answers)
        else:
            with tempfile.TemporaryDirectory() as cache_dir:
                export(store, job["id"], spec, manifest, folder, Path(cache_dir), job["adapters"])
    except OrchestratorError as error:
        sys.stderr.write(f"orchestrator: {error}\n")
        return error.exit_code
    what = f"the adapters of {job['id']} at step {manifest.step} are" if job["adapters"] else f"{job['id']} at step {manifest.step} is"
    _answer(answers, message=f"{what} in {folder}")
    return 0


def _export_universal(store: ObjectStore, manifest: Manifest, folder: Path, answers: TextIO) -> None:
    from orchestrator.runtime import universal  # imports DeepSpeed, which takes seconds

    _answer(answers, total=universal.num_bytes(manifest))
    universal.write_universal(store, manifest, folder, lambda num_bytes: _answer(answers, bytes=num_bytes))


def _answer(answers: TextIO, **values: Any) -> None:
    answers.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
