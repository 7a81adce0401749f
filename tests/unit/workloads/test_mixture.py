"""Mixtures of experts: sizes, routing without loss, and how evenly it is done."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from orchestrator.config import load_job_spec
from orchestrator.errors import ConfigError
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec
from workloads.decoder import Architecture, Mixture, decoder_of
from workloads.gpt import GPT
from workloads.mixture import active_parameters, balance_loss, expert_counts, imbalance

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 2, "num_heads": 2, "num_experts": 4}


def built(**options):
    torch.manual_seed(0)
    return Mixture(**{**TINY, **options}).build(vocab_size=30, block_size=8).eval()


@pytest.mark.parametrize(
    ("model", "parameters", "met"), [("gpt-moe-8x1b", 7.0e9, 2.2e9), ("gpt-moe-14b", 13.8e9, 2.2e9), ("gpt-moe-8x7b", 46.7e9, 12.9e9)]
)
def test_the_shipped_mixtures_have_the_size_that_they_say(model, parameters, met):
    spec = load_job_spec(["workload=gpt", f"model={model}", "data=python-source-32k"])
    decoder = decoder_of(spec.model.options)
    with torch.device("meta"):
        found = decoder.build(spec.data.options["vocab_size"], spec.data.options["block_size"])
    assert sum(tensor.numel() for tensor in found.parameters()) == pytest.approx(parameters, rel=0.02)
    assert active_parameters(found, decoder.experts_per_token) == pytest.approx(met, rel=0.02)


def by_a_loop(block, x):
    """What a mixture makes of tokens x [n, hidden], expert by expert and token by token."""
    ratings = torch.softmax(functional.linear(x, block.gate.weight), -1)
    rows = []
    for token, rating in zip(x, ratings, strict=True):
        weights, chosen = rating.topk(2)
        row = torch.zeros_like(token)
        for weight, expert in zip(weights / weights.sum(), chosen, strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ token).chunk(2)
            row += weight * (block.experts.down_proj[expert] @ (functional.silu(gate) * up))
        if hasattr(block, "shared_expert"):
            row += torch.sigmoid(block.shared_expert_gate(token)) * block.shared_expert(token)
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("options", [{}, {"shared_intermediate_size": 40}])
@pytest.mark.parametrize("skewed", [False, True])
def test_every_token_passes_through_the_experts_it_chose(options, skewed):
    block = built(**options).model.layers[0].mlp
    x = torch.randn(2, 7, 16)
    with torch.no_grad():
        block.gate.weight.normal_()
        if skewed:  # all tokens choose two experts, more than an even share would let in
            x[..., 0] = 9.0
            block.gate.weight[:2, 0] = 9.0
        assert torch.allclose(block(x).view(-1, 16), by_a_loop(block, x.view(-1, 16)), atol=1e-6)
    counts = expert_counts(functional.linear(x.view(-1, 16), block.gate.weight), 2)
    assert counts.sum() == 28 and (counts.tolist() == [14, 14, 0, 0]) is skewed


def test_a_sample_comes_out_the_same_whatever_is_beside_it():
    model, tokens = built(), torch.randint(0, 30, (6, 8))
    assert torch.allclose(model(input_ids=tokens).logits[:1], model(input_ids=tokens[:1]).logits, atol=1e-6)


def test_the_balance_loss_is_that_of_switch():
    logits = torch.log(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]]))
    f, p = torch.tensor([2 / 3, 0, 0, 1 / 3]), torch.tensor([1.4, 0.4, 0.3, 0.9]) / 3
    assert balance_loss([logits], 1).item() == pytest.approx(4 * (f * p).sum().item())
    assert balance_loss([logits, logits], 1).item() == pytest.approx(8 * (f * p).sum().item())
    even = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]))
    assert balance_loss([even], 2).item() == pytest.approx(1.0)
    assert balance_loss([torch.tensor([[50.0, 0.0, 0.0, 0.0]])], 1).item() == pytest.approx(4.0)


def test_the_balance_loss_of_a_layer_is_transformers_own_but_for_the_number_of_choices():
    logits = torch.randn(50, 4)
    assert 2 * balance_loss([logits], 2).item() == pytest.approx(load_balancing_loss_func((logits,), 4, 2).item())


def test_following_the_balance_loss_evens_the_load():
    logits = torch.nn.Parameter(torch.randn(200, 4) + torch.tensor([2.0, 0.0, 0.0, 0.0]))
    before = expert_counts(logits, 1)
    for _ in range(50):
        (gradient,) = torch.autograd.grad(balance_loss([logits], 1), logits)
        logits.data -= 20 * gradient
    after = expert_counts(logits, 1)
    assert imbalance([before.tolist()]) > 2.5 > 1.5 > imbalance([after.tolist()]) >= 1


def test_a_token_meets_the_experts_it_is_routed_to_and_all_else():
    model, experts = built(), 2 * (3 * 16 * 24)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert active_parameters(model, 2) == total - 2 * experts
    dense = Architecture(hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2).build(30, 8)
    assert active_parameters(dense, 1) == sum(parameter.numel() for parameter in dense.parameters())


def test_projections_into_the_residual_stream_begin_smaller():
    options = {"shared_intermediate_size": 8}
    scaled, plain = (dict(built(**options, depth_scaled_init=flag).named_parameters()) for flag in (True, False))
    smaller = {name for name in scaled if not torch.equal(scaled[name], plain[name])}
    assert {name.partition("layers.0.")[2] for name in smaller if "layers.0." in name} == {
        "self_attn.o_proj.weight", "mlp.experts.down_proj", "mlp.shared_expert.down_proj.weight",
    }  # fmt: skip
    assert all(torch.allclose(scaled[name], plain[name] / 2) for name in smaller)  # sqrt(2 * 2 layers)


def test_the_first_layers_may_be_dense():
    model = built(shared_intermediate_size=8, dense_layers=1)
    first, second = (layer.mlp for layer in model.model.layers)
    assert not hasattr(first, "experts") and hasattr(second, "experts")
    assert first.up_proj.weight.shape == (2 * TINY["intermediate_size"] + 8, TINY["hidden_size"])  # two experts and the shared one
    output = model(input_ids=torch.arange(8).view(1, -1), output_router_logits=True)
    assert len(output.router_logits) == 1 and expert_counts(output.router_logits[0], 2).sum() == 16
    total = sum(parameter.numel() for parameter in model.parameters())
    assert active_parameters(model, 2) == total - 3 * TINY["hidden_size"] * TINY["intermediate_size"] * (TINY["num_experts"] - 2)
    given = built(shared_intermediate_size=8, dense_layers=1, dense_intermediate_size=72).model.layers[0].mlp
    assert given.up_proj.weight.shape[0] == 72


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 1}, "model.options.num_experts=1 is not possible: allowed is at least 2"),
        ({"experts_per_token": 0}, "model.options.experts_per_token=0 is not possible: allowed is 1 to num_experts=4"),
        ({"experts_per_token": 5}, "model.options.experts_per_token=5"),
        ({"balance_weight": -0.1}, "model.options.balance_weight=-0.1 is not possible: allowed is 0 or more"),
        ({"shared_intermediate_size": -1}, "model.options.shared_intermediate_size=-1"),
        ({"dense_layers": 1}, r"model.options.dense_layers=1 .* with shared_intermediate_size"),
        ({"dense_layers": 2, "shared_intermediate_size": 8}, r"dense_layers=2 is not possible: allowed is 0, or 1 to num_layers - 1 = 1"),
        ({"dense_intermediate_size": 8}, r"dense_intermediate_size=8 is not possible: allowed is 0, or more with dense_layers"),
        ({"intermediate_size": 20}, "model.options.intermediate_size=20 is not possible: allowed is a multiple of 8 with experts"),
        ({"num_heads": 3}, "model.options.num_heads=3"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_by_its_flag(options, message):
    with pytest.raises(ConfigError, match=message):
        decoder_of({**TINY, **options})


# in the workload


def workload(**options):
    return GPT(
        JobSpec(
            workload=WorkloadSpec(name="gpt", entrypoint="workloads.gpt:GPT"),
            model=ModelSpec(name="tiny", options={**TINY, **options}),
            data=DataSpec(name="tiny-source", options={"block_size": 8}),
            training=TrainingSpec(max_steps=1, global_batch_size=1, micro_batch_size=1),
        )
    )


def test_the_loss_is_the_cross_entropy_and_the_weighted_balance():
    model, batch = built(), {"tokens": torch.randint(0, 30, (3, 9))}
    output = model(input_ids=batch["tokens"][:, :-1], output_router_logits=True)
    cross_entropy = functional.cross_entropy(output.logits.flatten(0, 1), batch["tokens"][:, 1:].flatten())
    assert len(output.router_logits) == 2
    assert torch.equal(workload(balance_weight=0.0).loss(model, batch), cross_entropy)
    expected = cross_entropy + 0.5 * balance_loss(output.router_logits, 2)
    assert workload(balance_weight=0.5).loss(model, batch).item() == pytest.approx(expected.item())


def test_an_evaluation_tells_how_busy_the_experts_are():
    subject = workload()
    sums = subject.evaluate(built(), {"tokens": torch.randint(0, 30, (3, 9))})
    assert sums["expert_tokens"].shape == (2, 4) and sums["expert_tokens"].sum(1).tolist() == [48, 48]
    counts = {"tokens": np.array(2), "right": np.array(1), "expert_tokens": np.array([[6, 2], [4, 4]])}
    figures = subject.metrics({"loss_sum": np.array(3.0), **counts})
    assert figures["expert_imbalance"] == pytest.approx((1.5 + 1) / 2) and figures["loss"] == 1.5


def test_the_operations_of_a_sample_are_those_of_the_experts_that_it_meets():
    model = built()
    assert workload().flops_per_sample(model) == 8 * (6 * active_parameters(model, 2) + 12 * 2 * 16 * 8)
