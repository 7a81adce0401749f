"""Which models can have their experts dealt out, and what DeepSpeed needs of transformers for it."""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")

import pytest
import torch
from torch import nn
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from orchestrator.errors import ConfigError
from orchestrator.layout import Layout
from orchestrator.runtime.experts import mixtures_of, names_in_the_registry
from workloads.decoder import Architecture, Mixture, decoder_of

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2}


def layout(size):
    return Layout(world_size=size, micro_batch_size=1, gradient_accumulation_steps=1, zero_stage=1, expert_parallel_size=size)


def mixture(num_experts=4, **options):
    return Mixture(**TINY, num_experts=num_experts, **options).build(vocab_size=30, block_size=8)


@pytest.mark.parametrize("shared", [0, 8])
def test_the_mixtures_of_a_model_are_found(shared):
    found = mixtures_of(mixture(shared_intermediate_size=shared), layout(2))
    assert [note.moe_module_name for note in found] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert {(note.num_experts, note.top_k, note.ffn_hidden_size, note.hidden_size) for note in found} == {(4, 2, 24, 16)}


def test_the_mixtures_of_a_trained_folder_are_found_and_hold_its_weights(tmp_path):
    kept = mixture()
    kept.save_pretrained(tmp_path)
    model = decoder_of({"pretrained": str(tmp_path)}).build(vocab_size=30, block_size=8)
    assert all(torch.equal(found, weight) for found, weight in zip(model.parameters(), kept.parameters(), strict=True))
    assert len(mixtures_of(model, layout(2))) == 2


def test_one_rank_for_all_experts_asks_for_nothing():
    assert mixtures_of(nn.Linear(2, 2), layout(1)) == mixtures_of(mixture(), layout(1)) == []


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(2, 2)), Architecture(**TINY).build(vocab_size=30, block_size=8)])
def test_a_model_without_experts_is_refused(model):
    said = rf"parallelism.expert_parallel_size=2 is not possible for the model {type(model).__name__}: allowed is 1, or .* such as Mixtral"
    with pytest.raises(ConfigError, match=said):
        mixtures_of(model, layout(2))


@pytest.mark.parametrize(("experts", "size", "possible"), [(4, 3, "1, 2, 4"), (6, 4, "1, 2, 3, 6"), (4, 8, "1, 2, 4")])
def test_experts_that_the_ranks_cannot_share_evenly_are_refused(experts, size, possible):
    said = rf"parallelism.expert_parallel_size={size} is not possible: {experts} experts can be dealt out to {possible} ranks"
    with pytest.raises(ConfigError, match=said):
        mixtures_of(mixture(experts), layout(size))


def test_transformers_registry_takes_deepspeeds_question_and_its_own():
    model = mixture().model
    own = _CAN_RECORD_REGISTRY.get(model)
    assert "router_logits" in own
    with names_in_the_registry():
        assert _CAN_RECORD_REGISTRY.get(str(type(model)), None) is own is _CAN_RECORD_REGISTRY.get(model)
        assert _CAN_RECORD_REGISTRY.get("no such class", 7) == 7
    with pytest.raises(TypeError):
        _CAN_RECORD_REGISTRY.get(str(type(model)), None)
