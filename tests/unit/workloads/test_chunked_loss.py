"""The loss in chunks of tokens is the loss."""

from __future__ import annotations

import copy
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from workloads.chunked_loss import ChunkedHead, allow_chunks, cross_entropy

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
TOKENS = torch.randint(0, 50, (3, 8), generator=torch.Generator().manual_seed(1))


def llama(tied):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=tied, use_cache=False, **SHAPE))


def loss(model, chunk, reduction="mean"):
    return cross_entropy(model, {"input_ids": TOKENS[:, :-1]}, TOKENS[:, 1:], reduction, chunk)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("chunk", [1, 8, 21, 1000])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_those_of_all_logits_at_once(tied, chunk):
    plain, chunked = llama(tied), llama(tied)
    assert allow_chunks(chunked)
    for reduction in ("mean", "sum"):
        found = [loss(plain, 0, reduction), loss(chunked, chunk, reduction)]
        assert found[1].dtype is torch.float32
        assert found[1].item() == pytest.approx(found[0].item(), rel=1e-6)
        for value in found:
            (value * 3).backward()
        expected = gradients(plain)
        assert gradients(chunked).keys() == expected.keys()
        for name, gradient in gradients(chunked).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=name)
        assert expected["lm_head.weight" if not tied else "model.embed_tokens.weight"].abs().max() > 1e-3
    with torch.no_grad():
        assert loss(chunked, chunk).item() == pytest.approx(loss(plain, 0).item(), rel=1e-6)


def test_the_model_keeps_its_names_its_logits_and_its_class_name():
    model = llama(tied=True)
    before, names = model(TOKENS).logits, list(model.state_dict())
    allow_chunks(model)
    assert isinstance(model.lm_head, ChunkedHead) and type(model).__name__ == "LlamaForCausalLM"
    assert torch.equal(model(TOKENS).logits, before) and list(model.state_dict()) == names
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_head_with_a_bias_and_one_without_training():
    torch.manual_seed(0)
    heads = [nn.Linear(6, 9), ChunkedHead(6, 9)]
    heads[1].load_state_dict(heads[0].state_dict())
    hidden = [torch.randn(5, 6, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in heads]
    targets = torch.tensor([0, 8, 3, 3, 1])
    for train in (True, False):
        for head, given in zip(heads, hidden, strict=True):
            head.requires_grad_(train)
            head.zero_grad()
            given.grad = None
        nn.functional.cross_entropy(heads[0](hidden[0]), targets, reduction="sum").backward()
        heads[1](hidden[1], targets, 2).backward()
        torch.testing.assert_close(hidden[1].grad, hidden[0].grad)
        for own, other in zip(heads[1].parameters(), heads[0].parameters(), strict=True):
            assert (own.grad is None) == (not train)
            if train:
                torch.testing.assert_close(own.grad, other.grad)


def test_bf16_is_as_near_to_fp32_as_the_plain_way():
    exact, plain = llama(True), llama(True).bfloat16()
    chunked = copy.deepcopy(plain)
    allow_chunks(chunked)
    for model, chunk in ((exact, 0), (plain, 0), (chunked, 4)):
        loss(model, chunk).backward()
    goal = exact.model.embed_tokens.weight.grad
    errors = [(model.model.embed_tokens.weight.grad.float() - goal).norm() / goal.norm() for model in (plain, chunked)]
    assert chunked.model.embed_tokens.weight.grad.dtype is torch.bfloat16
    assert errors[1] < max(2 * errors[0], 0.01)


def test_models_whose_logits_are_more_than_their_head_keep_the_plain_way():
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(Gemma2Config(vocab_size=50, head_dim=8, final_logit_softcapping=0.5, pad_token_id=0, **SHAPE))
    expected = loss(capped, 0)
    assert not allow_chunks(capped)
    assert torch.equal(loss(capped, 4), expected)
    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).eval()
    expected = loss(other, 0)
    assert allow_chunks(other) and not other.training
    assert loss(other, 4).item() == pytest.approx(expected.item(), rel=1e-6)
