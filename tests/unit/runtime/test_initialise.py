"""Values module by module: those of the whole way in kind, the same bits whatever part is filled, nothing forgotten or set twice."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
import torch
from torch import nn

from orchestrator.errors import WorkloadError
from orchestrator.runtime.initialise import Values, build_model
from workloads.decoder import decoder_of

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_layers": 3, "num_heads": 4}
DECODERS = [
    {}, {"tie_embeddings": False, "depth_scaled_init": False}, {"rope_scaling": 4.0, "rope_scaling_type": "yarn", "num_key_value_heads": 2},
    {"num_experts": 4}, {"num_experts": 4, "shared_intermediate_size": 64, "tie_embeddings": False},
]  # fmt: skip


def outline(decoder):
    with torch.device("meta"):
        return decoder.build(vocab_size=300, block_size=32)


def filled(options, seed=5, dtype=torch.float32, part=None):
    decoder = decoder_of({**SHAPE, **options})
    model = outline(decoder)
    Values(model, decoder.initialise, seed, CPU, dtype).fill(model if part is None else model.get_submodule(part))
    return model


@pytest.mark.parametrize("options", DECODERS, ids=str)
def test_a_decoder_filled_by_modules_is_one_built_whole_but_for_the_draws(options):
    torch.manual_seed(0)
    whole, model = decoder_of({**SHAPE, **options}).build(300, 32), filled(options)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == options.get("tie_embeddings", True)
    for (name, expected), found in zip(whole.named_parameters(), model.parameters(), strict=True):
        assert (found.shape, found.dtype, found.requires_grad) == (expected.shape, expected.dtype, True), name
        if expected.dim() == 1:
            assert torch.equal(found, expected), name
        else:  # normal; a deviation of n numbers is known to 1 / sqrt(2 n)
            assert found.std().item() == pytest.approx(expected.std().item(), rel=6 / found.numel() ** 0.5), name
            assert abs(found.mean()) < 6 * expected.std() / found.numel() ** 0.5, name
    for (name, expected), found in zip(whole.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(found, expected), name
    tokens = torch.arange(12).view(1, -1)
    model.load_state_dict(whole.state_dict())
    assert torch.equal(model.eval()(input_ids=tokens).logits, whole.eval()(input_ids=tokens).logits)


def test_a_part_gets_the_same_bits_as_the_whole_and_the_rest_no_memory():
    whole, part = filled({}), filled({}, part="model.layers.1")
    for (name, expected), found in zip(whole.named_parameters(), part.named_parameters(), strict=True):
        if name.startswith("model.layers.1."):
            assert torch.equal(found[1], expected), name
        else:
            assert found[1].is_meta, name
    head = filled({}, part="lm_head")
    assert torch.equal(head.lm_head.weight, whole.model.embed_tokens.weight), "a tied weight is its first module's"
    assert head.model.embed_tokens.weight is head.lm_head.weight


def test_the_seed_and_the_name_decide_and_masters_are_rounded_afterwards():
    one, same, other = filled({}), filled({}), filled({}, seed=6)
    narrow = filled({}, dtype=torch.bfloat16)
    for name, weight in one.named_parameters():
        assert torch.equal(weight, same.get_parameter(name))
        assert torch.equal(weight.bfloat16(), narrow.get_parameter(name))
        assert weight.dim() == 1 or not torch.equal(weight, other.get_parameter(name))
    assert narrow.model.rotary_emb.inv_freq.dtype is torch.float32
    assert not torch.equal(one.model.layers[0].mlp.gate_proj.weight, one.model.layers[1].mlp.gate_proj.weight)


class Pair(nn.Module):
    """The second layer has the first one's weight and a bias of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))
        self.forgotten = nn.Parameter(torch.zeros(2), requires_grad=False)


class Paired:
    def build_model(self, dataset):
        return Pair()

    def initialise(self, model, name, module):
        if isinstance(module, nn.Linear):
            module.weight.normal_()
            if module.bias is not None:
                module.bias.uniform_()


def test_a_tied_weight_is_drawn_once_and_what_is_forgotten_is_no_number():
    settled = []
    model, initialise = build_model(Paired(), None, 0)
    before = dict(model.named_parameters(remove_duplicate=False))
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}

    def settle(parameters):
        settled.append([tuple(parameter.shape) for parameter in parameters])
        for parameter in parameters:
            kept.setdefault(id(parameter), parameter.clone())
            parameter.data = torch.empty(0)  # as ZeRO 3 does

    kept = {}
    Values(model, initialise, 0, CPU, torch.float32).fill(model, settle)
    assert settled == [[(2,)], [(3, 3)], [(3,)]]
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is tensor for name, tensor in before.items()), "whoever holds a parameter still does"
    assert model.second.weight is model.first.weight and len(kept) == 3
    assert kept[id(model.forgotten)].isnan().all() and not model.forgotten.requires_grad
    assert model.count.tolist() == [0, 0]
    alone, _ = build_model(Paired(), None, 0)
    Values(alone, initialise, 0, CPU, torch.float32).fill(alone.first)
    assert torch.equal(alone.first.weight, kept[id(model.first.weight)])


def test_a_workload_that_offers_nothing_is_built_whole_under_the_seed():
    class Plain:
        def build_model(self, dataset):
            return nn.Linear(2, 2) if dataset else "none"

    (one, nothing), (same, _) = build_model(Plain(), True, 3), build_model(Plain(), True, 3)
    assert nothing is None and torch.equal(one.weight, same.weight)
    with pytest.raises(WorkloadError, match=r"build_model\(\) must return a torch.nn.Module; it returned str"):
        build_model(Plain(), False, 3)
