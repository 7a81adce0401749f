"""LoRA: what is trained, what stays, how it begins, and how it is merged."""

from __future__ import annotations

import dataclasses
import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from peft import PeftModel
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from orchestrator.errors import ConfigError, UserError
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, ParallelismSpec, ResourcesSpec, TrainingSpec, WorkloadSpec
from workloads.adapters import merge
from workloads.decoder import decoder_of
from workloads.encoder import encoder_of
from workloads.gpt import GPT

VOCABULARY, LENGTH = 60, 16
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("decoder")
    LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=LENGTH, eos_token_id=0, tie_word_embeddings=True)).save_pretrained(path)
    return path


def built(folder, seed=0, **options):
    torch.manual_seed(seed)
    return decoder_of({"pretrained": str(folder), "lora_rank": 4, **options}).build(VOCABULARY, LENGTH)


def loss_of(model, tokens):
    logits = model(input_ids=tokens[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def trained(model, steps=40):
    """Losses while the model learns sequences that go on by threes."""
    tokens = (torch.arange(3)[:, None] + 3 * torch.arange(12)) % VOCABULARY
    optimizer = torch.optim.AdamW((parameter for parameter in model.parameters() if parameter.requires_grad), lr=5e-2)
    losses = []
    for _ in range(steps):
        loss = loss_of(model, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_it_begins_as_the_stored_model_and_by_its_seed(folder):
    tokens = torch.arange(8).view(1, -1)
    stored = LlamaForCausalLM.from_pretrained(folder).eval()
    first, again, other = (built(folder, seed) for seed in (0, 0, 1))
    assert torch.equal(first.eval()(input_ids=tokens).logits, stored(input_ids=tokens).logits)
    drawn = [{name: value for name, value in model.named_parameters() if "lora_A" in name} for model in (first, again, other)]
    assert len(drawn[0]) == 14  # 7 linear layers of each of the 2 blocks, not the tied head
    assert all(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())
    assert not any(torch.equal(value, drawn[2][name]) for name, value in drawn[0].items())


def test_only_the_adapters_are_trained_and_the_loss_falls(folder):
    model = built(folder)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in names)
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = trained(model)
    assert losses[-1] < losses[0] - 0.5
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == names
    stored = dict(LlamaForCausalLM.from_pretrained(folder).named_parameters())
    kept = {name.replace(".base_layer", ""): value for name, value in model.named_parameters() if name not in names}
    assert kept.keys() == stored.keys() and all(torch.equal(value, stored[name]) for name, value in kept.items())


def test_merged_it_is_a_plain_model_that_says_the_same(folder, tmp_path):
    model = built(folder)
    trained(model, steps=10)
    tokens = torch.arange(10).view(1, -1)
    expected = model.eval()(input_ids=tokens).logits
    merge(model).save_pretrained(tmp_path)
    read = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(read(input_ids=tokens).logits, expected, atol=1e-5)
    assert not torch.allclose(LlamaForCausalLM.from_pretrained(folder).eval()(input_ids=tokens).logits, expected, atol=1e-2)


@pytest.mark.parametrize("targets", [[], ["q_proj", "down_proj"]])
def test_the_adapters_alone_are_a_folder_that_peft_reads(folder, tmp_path, targets):
    decoder = decoder_of({"pretrained": str(folder), "lora_rank": 4, "lora_alpha": 24.0, "lora_targets": targets})
    torch.manual_seed(0)
    model = decoder.build(VOCABULARY, LENGTH)
    trained(model, steps=10)
    decoder.export_adapters(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    tokens, base = torch.arange(10).view(1, -1), LlamaForCausalLM.from_pretrained(folder)
    plain = base.eval()(input_ids=tokens).logits
    read = PeftModel.from_pretrained(base, tmp_path).eval()(input_ids=tokens).logits
    assert torch.equal(read, model.eval()(input_ids=tokens).logits) and not torch.allclose(read, plain, atol=1e-2)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["task_type"], told["lora_alpha"]) == (str(folder), "CAUSAL_LM", 24.0)


def test_adapters_that_would_not_say_the_same_are_not_exported(folder, tmp_path):
    with pytest.raises(UserError, match=r"no adapters \(model.options.lora_rank=0\): export it without --adapters"):
        decoder_of({"pretrained": str(folder)}).export_adapters(torch.nn.Identity(), tmp_path)
    with pytest.raises(UserError, match=r"does not know of model.options.rope_scaling=2.0. Export the model without --adapters"):
        decoder_of({"pretrained": str(folder), "lora_rank": 4, "rope_scaling": 2.0}).export_adapters(torch.nn.Identity(), tmp_path)


def test_named_layers_alone_get_adapters(folder):
    model = built(folder, lora_targets=["q_proj", "v_proj"], lora_rank=2)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted == {"q_proj", "v_proj"}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 2 * 2 * (2 * 16)  # blocks, layers, rank, in + out
    with pytest.raises(ConfigError, match=r"lora_targets=query is not possible: the model's linear layers are down_proj, .*q_proj"):
        built(folder, lora_targets=["query"])


def test_a_classifiers_new_layer_is_trained_with_the_adapters(tmp_path):
    BertForMaskedLM(BertConfig(**SHAPE, max_position_embeddings=LENGTH)).save_pretrained(tmp_path)
    model = encoder_of({"pretrained": str(tmp_path), "lora_rank": 2}).classifier(VOCABULARY, LENGTH, 3)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in names if "lora_" not in name} == {"head.weight", "head.bias"} and len(names) > 10


def test_without_a_rank_everything_is_trained(folder):
    assert all(parameter.requires_grad for parameter in built(folder, lora_rank=0).parameters())
    assert merge(plain := built(folder, lora_rank=0)) is plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": -1}, "model.options.lora_rank=-1 is not possible: allowed is 0"),
        ({"lora_alpha": 0.0}, "model.options.lora_alpha=0.0 is not possible: allowed is more than 0"),
        ({"lora_dropout": 1.0}, "model.options.lora_dropout=1.0"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_flag(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        built(folder, **options)


def test_ranks_that_share_layers_are_refused(folder):
    spec = JobSpec(
        workload=WorkloadSpec(name="gpt", entrypoint="workloads.gpt:GPT"),
        model=ModelSpec(name="lora", options={"pretrained": str(folder), "lora_rank": 4}),
        data=DataSpec(name="python-source"),
        training=TrainingSpec(max_steps=1, global_batch_size=2, micro_batch_size=1),
        resources=ResourcesSpec(num_workers=2),
    )
    GPT(spec)
    with pytest.raises(ConfigError, match=r"parallelism.tensor_parallel_size=2 is not possible: allowed is 1 with model.options.lora_rank"):
        GPT(dataclasses.replace(spec, parallelism=ParallelismSpec(tensor_parallel_size=2)))
