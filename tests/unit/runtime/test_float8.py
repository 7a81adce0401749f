"""Which layers multiply in fp8, what is rounded, and what is refused."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torchao.float8 import Float8LinearConfig

from orchestrator.errors import ConfigError
from orchestrator.runtime.float8 import check_capability, multiply_in_float8
from orchestrator.runtime.float8_linear import Linear
from orchestrator.spec import Float8, TrainingSpec

CPU = torch.device("cpu")
RECIPES = [recipe for recipe in Float8 if recipe is not Float8.none]


class Model(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embedding = nn.Embedding(16, width)
        self.frozen, self.odd = nn.Linear(width, width).requires_grad_(False), nn.Linear(width, 24)
        self.back, self.up, self.head = nn.Linear(24, width), nn.Linear(width, 48), nn.Linear(48, 16)


def asked(recipe=Float8.tensorwise, emulated=True):
    return TrainingSpec(max_steps=1, global_batch_size=1, micro_batch_size=1, float8=recipe, float8_emulated=emulated)


def layer(recipe=Float8.tensorwise, emulate=True, device="cpu"):
    torch.manual_seed(0)
    config = Float8LinearConfig.from_recipe_name(recipe.value)
    object.__setattr__(config, "emulate", emulate)
    return Linear.from_float(nn.Linear(32, 48, dtype=torch.bfloat16, device=device), config)


def rounded(x, dtype):
    """`x` scaled so that its largest element is the format's, rounded, and scaled back."""
    scale = (torch.finfo(dtype).max / x.double().abs().max()).float()
    return (x.float() * scale).to(dtype).float() / scale


def passed(made, tokens=16):
    """(output, gradient of the input, gradient of the weight) of a layer."""
    x = torch.linspace(-3, 2, tokens * 32).reshape(1, tokens, 32).bfloat16().requires_grad_()
    out = made(x)
    out.backward(torch.linspace(1, -1, out.numel()).reshape(out.shape).bfloat16())
    return out, x.grad, made.weight.grad


def test_trained_layers_of_suitable_sizes_multiply_in_float8_and_names_stay():
    model = Model()
    before = dict(model.named_parameters())
    multiply_in_float8(model, asked(), CPU)
    assert [name for name, module in model.named_modules() if type(module) is Linear] == ["up"]
    assert {name: id(weight) for name, weight in model.named_parameters()} == {name: id(weight) for name, weight in before.items()}
    Model().load_state_dict(model.state_dict())


def test_nothing_is_changed_unasked():
    model = Model()
    multiply_in_float8(model, asked(Float8.none, emulated=False), CPU)
    assert not any(type(module) is Linear for module in model.modules())


def test_a_product_is_that_of_the_rounded_factors():
    made = layer()
    out, by_x, by_weight = passed(made)
    x = torch.linspace(-3, 2, 16 * 32).reshape(16, 32).bfloat16()
    by_out = torch.linspace(1, -1, 16 * 48).reshape(16, 48).bfloat16()
    x8, weight8, by_out8 = rounded(x, torch.float8_e4m3fn), rounded(made.weight, torch.float8_e4m3fn), rounded(by_out, torch.float8_e5m2)
    expected = (x8 @ weight8.t()).bfloat16() + made.bias, by_out8 @ weight8, by_out8.t() @ x8
    for found, wanted in zip((out[0], by_x[0], by_weight), expected, strict=True):
        torch.testing.assert_close(found, wanted.bfloat16(), rtol=1e-2, atol=1e-2)
    exact = nn.functional.linear(x, made.weight, made.bias), by_out @ made.weight, by_out.t() @ x
    for found, unrounded in zip((out[0], by_x[0], by_weight), exact, strict=True):
        assert (found - unrounded).abs().max() > 0.05


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("tokens", [16, 5])
def test_the_operators_of_a_gpu_say_the_same_as_the_emulation(recipe, tokens):
    """torch has the scaled product on a CPU too, where it minds no sizes."""
    for found, expected in zip(passed(layer(recipe, emulate=False), tokens), passed(layer(recipe), tokens), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_any_number_of_tokens_comes_in_sizes_that_a_gpu_takes(recipe):
    """On meta tensors torch checks the sizes and the order in memory that cuBLAS wants, and computes nothing."""
    made = layer(recipe, emulate=False, device="meta")
    out = made(torch.empty(5, 32, dtype=torch.bfloat16, device="meta", requires_grad=True))
    out.sum().backward()
    assert (out.shape, made.weight.grad.shape) == ((5, 48), (48, 32))
    if recipe is Float8.rowwise_with_gw_hp:
        return  # which sums over tokens in bf16
    with pytest.raises(RuntimeError, match="divisible by 16"):
        super(Linear, made).forward(torch.empty(5, 32, dtype=torch.bfloat16, device="meta")).sum().backward()


@pytest.mark.parametrize("compiled", [False, True])
def test_between_the_passes_a_layer_keeps_no_weight_that_zero_3_lets_go(compiled):
    made = layer()
    weight = made.weight.data.clone()
    run = torch.compile(made, backend="aot_eager", fullgraph=True) if compiled else made
    out = run(torch.ones(24, 32, dtype=torch.bfloat16))
    gathered = StorageWeakRef(made.weight.untyped_storage())
    made.weight.data = torch.empty(0, dtype=torch.bfloat16)
    assert gathered.expired()
    made.weight.data = weight
    out.sum().backward()
    assert made.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("found", [(8, 9), (9, 0), (10, 0)])
def test_gpus_with_fp8_are_taken(found):
    check_capability(found)


@pytest.mark.parametrize(("found", "name"), [((8, 0), "a GPU of compute capability 8.0"), (None, "a CPU")])
def test_devices_without_fp8_are_refused(found, name):
    with pytest.raises(ConfigError, match=rf"float8_emulated=false is not possible: {name} .* at least 8\.9; allowed is true, or"):
        check_capability(found)


def test_a_rank_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match="a CPU does not multiply in fp8"):
        multiply_in_float8(Model(), asked(emulated=False), CPU)


def test_a_model_without_a_suitable_layer_is_refused():
    with pytest.raises(ConfigError, match=r"float8=tensorwise is not possible: the model Model has no trained nn\.Linear .* of 16; "):
        multiply_in_float8(Model(width=20), asked(), CPU)


def test_a_missing_torchao_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ConfigError, match=r"torchao cannot be imported .* pip install 'orchestrator\[float8\]'; allowed is none"):
        multiply_in_float8(Model(), asked(), CPU)
