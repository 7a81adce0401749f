"""A checkpoint as a folder that DeepSpeed opens with `checkpoint.load_universal`, at any world size and ZeRO stage 1, 2 or 3.

    latest_universal                               the name of the folder below
    global_step<N>/
        mp_rank_00_model_states.pt                 counters, frozen weights and buffers; once more under ZeRO 3's name
        zero/optimizer_state.pt                    what is the same for all parameters
        zero/<parameter>/fp32.pt, exp_avg.pt ...   {"param": whole tensor}, in fp32; step.pt

as `deepspeed/checkpoint/ds_to_universal.py` writes and `universal_checkpoint.py` reads it. Hyperparameters are left to the engine's own
config. DeepSpeed does not read frozen weights and buffers from such a folder: they are in "module" for `load_state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch

from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.tensors import Name, Slices, num_bytes_of, portions, read_tensors
from orchestrator.errors import IncompatibleCheckpoint
from orchestrator.runtime.ema import ROLE as AVERAGE
from orchestrator.storage import ObjectStore

MAX_GROUPS = 64
"""Parameter groups that the engine may have: DeepSpeed loads as many as the file lists."""

Tell = Callable[[int], None]


def write_universal(store: ObjectStore, manifest: Manifest, folder: Path, tell: Tell = lambda num_bytes: None) -> None:
    """Write the folder, `latest_universal` last. `tell(bytes)` hears what was written. One portion of tensors is in memory at a time.

    Raises CorruptObject, StorageError, IncompatibleCheckpoint for experts that were dealt out, which DeepSpeed keeps in another form.
    """
    dealt_out = manifest.job_scalars["sizes"].get("expert_parallel_size", 1)
    if dealt_out > 1:
        raise IncompatibleCheckpoint(
            f"{manifest.job_id} was trained at parallelism.expert_parallel_size={dealt_out}; DeepSpeed's universal format is written for 1."
        )
    slices = exported(manifest)
    trained = _trained(slices)
    tag = f"global_step{manifest.job_scalars['global_steps']}"
    steps = int(manifest.job_scalars["optimizer_steps"]["default"])
    module: dict[str, torch.Tensor] = {}
    for portion in portions(slices):
        for (role, name), array in read_tensors(store, manifest, slices, portion).items():
            tensor = _tensor(array, slices[role, name][0].dtype)
            if role == "buffer" or name not in trained:
                module[name] = tensor
            else:
                _save({"param": tensor.float()}, folder / tag / "zero" / name / f"{'fp32' if role == 'param' else role}.pt")
            tell(array.nbytes)
    for name in trained:
        _save(torch.tensor(float(steps)), folder / tag / "zero" / name / "step.pt")
    _save(_optimizer_state(steps), folder / tag / "zero" / "optimizer_state.pt")
    for file in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        _save(_model_states(manifest, module), folder / tag / file)
    (folder / "latest_universal").write_text(tag)


def exported(manifest: Manifest) -> Slices:
    """All but the average of the weights, of which DeepSpeed knows nothing."""
    return {key: parts for key, parts in manifest.tensors().items() if key[0] != AVERAGE}


def num_bytes(manifest: Manifest) -> int:
    return sum(num_bytes_of(parts[0]) for parts in exported(manifest).values())


def _trained(slices: Slices) -> set[str]:
    """Names of parameters with an optimizer's state; all, where the optimizer keeps none."""
    stateful: set[Name] = {key for key in slices if key[0] not in ("param", "buffer")}
    return {name for _, name in stateful} or {name for role, name in slices if role == "param"}


def _tensor(array: Any, dtype: str) -> torch.Tensor:
    return torch.from_numpy(array).view(getattr(torch, dtype))


def _optimizer_state(steps: int) -> dict[str, Any]:
    """ZeRO 1 and 2 read "param_groups", ZeRO 3 "optimizer_state_dict"; without hyperparameters the engine keeps its own.

    ZeRO 3 gives the one step counter of this file to all its groups. As a number, as DeepSpeed's own optimizers count, each goes on
    alone; as a tensor they would all add to it, and count several steps for one, unseen.
    """
    everywhere = {"state": {0: {"step": steps}}, "param_groups": [{"params": []}]}
    groups: list[dict[str, Any]] = [{"params": []} for _ in range(MAX_GROUPS)]
    return {"param_groups": groups, "optimizer_state_dict": everywhere, "ds_version": deepspeed.__version__}


def _model_states(manifest: Manifest, module: dict[str, torch.Tensor]) -> dict[str, Any]:
    scalars = manifest.job_scalars
    return {
        "module": module, "global_steps": scalars["global_steps"], "global_samples": scalars["global_samples"],
        "skipped_steps": scalars["skipped"], "dp_world_size": 1, "mp_world_size": 1, "ds_version": deepspeed.__version__,
        "lr_scheduler": {"last_batch_iteration": scalars["global_steps"] - 1}, "universal_checkpoint_info": {},
    }  # fmt: skip


def _save(value: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
