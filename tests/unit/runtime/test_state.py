"""What an engine's state takes of memory, and that what is not trained comes back in whatever type the model has it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from checkpoint_writer import write_checkpoint
from torch import nn

from orchestrator.checkpoints.commit import CommitLog
from orchestrator.checkpoints.restore import restore
from orchestrator.layout import layout_for
from orchestrator.paths import JobKeys
from orchestrator.runtime.state import EngineState
from orchestrator.runtime.tensor_parallel import Part
from orchestrator.spec import JobSpec, from_dict
from orchestrator.storage import MemoryStore

KEYS = JobKeys("job")


class Adapted(nn.Module):
    """Frozen weights with a trained adapter, and running means."""

    def __init__(self, dtype, scattered):
        super().__init__()
        frozen = torch.randn(8, 6)
        frozen = (frozen.t().contiguous().t() if scattered else frozen).to(dtype)
        self.frozen = nn.Parameter(frozen, requires_grad=False)
        self.adapter = nn.Parameter(torch.randn(6, 2))
        self.norm = nn.BatchNorm1d(6, affine=False).to(dtype)
        nn.init.uniform_(self.norm.running_mean)


@pytest.fixture
def first_rank(tmp_path):
    """This process is rank 0 of a group; how many ranks there are is the layout's to say."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def state_of(model, workers):
    values = {
        "workload": {"name": "x", "entrypoint": "m:C"}, "model": {"name": "x"}, "data": {"name": "x"},
        "training": {"max_steps": 1, "global_batch_size": workers, "micro_batch_size": 1}, "resources": {"num_workers": workers},
    }  # fmt: skip
    parts = {id(parameter): Part(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([model.adapter])
    return EngineState(SimpleNamespace(module=model, optimizer=optimizer), parts, layout_for(from_dict(JobSpec, values)))


def test_a_save_takes_memory_for_no_frozen_weight_and_for_a_share_of_each_buffer(first_rank):
    model = Adapted(torch.bfloat16, scattered=False)
    state = state_of(model, workers=2)
    (frozen,) = state.constant_pieces()
    assert (frozen.start, frozen.end, frozen.dtype) == (0, 24, torch.float32)
    assert frozen.data.untyped_storage().data_ptr() == model.frozen.untyped_storage().data_ptr()
    buffers = {piece.name: piece.data for piece in state.owned_pieces() if piece.role == "buffer"}
    assert set(buffers) == {"norm.running_mean", "norm.running_var"}  # of the one counter the other rank saves all
    for name, data in buffers.items():
        assert data.untyped_storage().nbytes() == data.nbytes == 3 * 2, name
        assert data.untyped_storage().data_ptr() != model.get_buffer(name).untyped_storage().data_ptr(), name


@pytest.mark.parametrize("scattered", [True, False])
@pytest.mark.parametrize(("saved_as", "restored_as"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_what_is_not_trained_comes_back_where_the_model_has_it(first_rank, saved_as, restored_as, scattered):
    source, target = Adapted(saved_as, scattered=False), Adapted(restored_as, scattered)
    store = MemoryStore()
    log = CommitLog(store, KEYS)
    state, prefix = state_of(source, workers=1), KEYS.checkpoint(1, log.begin_epoch("a").number, "u")
    write_checkpoint(store, prefix, 0, [*state.owned_pieces(), *state.constant_pieces()], {})
    ref = log.commit(epoch=1, step=1, prefix=prefix, num_writers=1, world_size=1, zero_stage=0, job_scalars={})

    into = state_of(target, workers=1)
    wanted = into.wanted_pieces()
    own = {tensor.untyped_storage().data_ptr() for tensor in (target.frozen, *target.buffers())}
    beside = [piece for piece in wanted if piece.name == "frozen" or piece.role == "buffer"]
    assert sum(piece.data.untyped_storage().data_ptr() not in own for piece in beside) == scattered
    restore(store, log.load_manifest(ref), wanted, needless=())
    into.after_restore()
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor.to(target.state_dict()[name].dtype)), name
