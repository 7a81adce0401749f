"""Muon against its formulas, which weights it takes, who makes a cut matrix orthogonal, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.runtime.muon import Held, Matrix, Muon, Placement, hidden_matrices, orthogonal, owners
from orchestrator.runtime.optimizers import own_optimizer
from orchestrator.spec import OptimizerName, OptimizerSpec

SETTINGS = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.5, "momentum": 0.9}


def muon(groups, hidden, **changes):
    return Muon(groups, frozenset(map(id, hidden)), **SETTINGS | changes)


def llama(tied):
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=13, tie_word_embeddings=tied, **shape))


@pytest.mark.parametrize("shape", [(6, 6), (5, 40), (40, 5)])
def test_orthogonal_keeps_the_directions_and_evens_out_the_sizes(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonal(matrix) @ v.T
    assert inside.diagonal().numpy() == pytest.approx(1, abs=0.4)
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-4


def test_a_matrix_steps_by_nesterov_momentum_made_orthogonal():
    rng = np.random.default_rng(2)
    weight = torch.nn.Parameter(torch.tensor(rng.normal(size=(4, 9)), dtype=torch.float32))
    w, m = weight.detach().clone(), torch.zeros(4, 9)
    optimizer = muon([{"params": [weight]}], [weight])
    for _ in range(4):
        g = torch.tensor(rng.normal(size=(4, 9)), dtype=torch.float32)
        m = 0.9 * m + g
        w = w * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 9**0.5 * orthogonal(g + 0.9 * m)
        weight.grad = g
        optimizer.step()
    assert weight.detach().numpy() == pytest.approx(w.numpy(), abs=1e-5)


def test_what_is_not_hidden_goes_by_adamw():
    ours, theirs = (torch.nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
    mine = muon([{"params": [ours], "weight_decay": 0.25}], [])
    other = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.25)
    for number in range(1, 4):
        ours.grad, theirs.grad = (torch.full((2, 3), 1.0 / number) for _ in range(2))
        mine.step()
        other.step()
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_head_and_vectors_are_not_hidden(tied):
    model = llama(tied)
    hidden = hidden_matrices(model)
    found = {name for name, parameter in model.named_parameters() if id(parameter) in hidden}
    layer = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
    assert found == {f"model.layers.0.{part}.{name}.weight" for part, names in layer.items() for name in names}


def test_the_last_linear_layer_is_the_head_of_a_model_that_names_none():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    assert hidden_matrices(model) == {id(model[0].weight), id(model[2].weight)}


def test_who_holds_most_does_it_and_equals_take_turns():
    assert owners([{0: 10}, {0: 2, 1: 8}, {1: 5, 2: 5}]) == [0, 1, 2]
    assert owners([{0: 6, 1: 6, 2: 6}] * 4) == [0, 1, 2, 0]


def test_two_matrices_in_one_flat_tensor_with_padding_step_as_two_weights():
    generator = torch.Generator().manual_seed(3)
    values, gradient = torch.randn(20, generator=generator), torch.randn(20, generator=generator)
    flat = torch.nn.Parameter(values.clone())
    cut = muon([{"params": [flat]}], [flat])
    matrices = tuple(Matrix(shape, (Held(0, offset, 0, length),), 0) for shape, offset, length in (((2, 3), 0, 6), ((3, 4), 6, 12)))
    cut.place({flat: Placement(matrices)})
    weights = [torch.nn.Parameter(values[:6].view(2, 3).clone()), torch.nn.Parameter(values[6:18].view(3, 4).clone())]
    apart = muon([{"params": weights}], weights)
    flat.grad, weights[0].grad, weights[1].grad = gradient, gradient[:6].view(2, 3), gradient[6:18].view(3, 4)
    cut.step()
    apart.step()
    assert flat[:18].tolist() == torch.cat([weight.flatten() for weight in weights]).tolist()
    assert flat[18:].tolist() == (values[18:] * (1 - 0.1 * 0.5)).tolist()


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="no closure"):
        muon([{"params": [torch.nn.Parameter(torch.ones(1))]}], []).step(lambda: 0.0)


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_it_learns(name):
    torch.manual_seed(4)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    inputs = torch.randn(256, 8)
    targets = torch.sin(inputs.sum(1, keepdim=True))
    asked = OptimizerSpec(name=OptimizerName(name), lr=0.03, weight_decay=0.0, momentum=0.95)
    optimizer = own_optimizer(asked, model)([{"params": list(model.parameters())}])
    losses = []
    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * (1 - step / 100)
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.45
    assert losses[-1] < 0.2
