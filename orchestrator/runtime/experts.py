"""Expert parallelism by DeepSpeed's AutoEP: which models it can deal out, and which experts of which parameter a rank holds.

AutoEP puts a layer of its own in the place of each mixture of experts of a transformers model. A rank keeps the router and
1/size of the experts, sends each token to the ranks that hold the experts it was routed to, and gets back what they make of it.
None is dropped. Neighbouring ranks form a group that holds all experts between them; all groups hold the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.module_inject.auto_ep import AutoEP
from deepspeed.module_inject.auto_ep_config import AutoEPConfig
from deepspeed.moe.fused_expert_layout import classify_fused_gate_up_layout
from deepspeed.utils import groups

from orchestrator.checkpoints.plan import Box
from orchestrator.errors import ConfigError
from orchestrator.layout import Layout
from orchestrator.runtime.tensor_parallel import Part, Parts

_FAMILIES = ("mixtral", "qwen3_moe")
"""DeepSpeed's names of what is known here: Mixtral, and Qwen 2 and 3 with experts. Others rate experts by more than one matrix."""


def mixtures_of(model: torch.nn.Module, layout: Layout) -> list[Any]:
    """DeepSpeed's notes of the model's mixtures of experts, to be kept for `parts_with_experts`; none without expert parallelism.

    Raises ConfigError where there are none, or their experts cannot be dealt out.
    """
    size = layout.expert_parallel_size
    if size == 1:
        return []
    flag = f"parallelism.expert_parallel_size={size} is not possible"
    try:
        found: list[Any] = AutoEP(model, AutoEPConfig(enabled=True, autoep_size=size)).ep_parser()
    except ValueError as error:
        raise ConfigError(f"{flag} for the model {type(model).__name__}: {error}") from error
    if not found or any(mixture.model_family not in _FAMILIES or not _is_stacked(model, mixture) for mixture in found):
        raise ConfigError(
            f"{flag} for the model {type(model).__name__}: allowed is 1, or a transformers model with mixtures of experts, such as Mixtral."
        )
    for mixture in found:
        if mixture.num_experts % size:
            divisors = [str(n) for n in range(1, mixture.num_experts + 1) if mixture.num_experts % n == 0]
            raise ConfigError(f"{flag}: {mixture.num_experts} experts can be dealt out to {', '.join(divisors)} ranks.")
    return found


@contextmanager
def names_in_the_registry() -> Iterator[None]:
    """DeepSpeed 0.19.8 moves transformers' records of router logits to its own layers, and to do so asks a registry by a class's name and
    with a default. In transformers 5.23 that registry is asked by a model and without; while this lasts it takes both."""
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

    kind = type(_CAN_RECORD_REGISTRY)
    plain = kind.get

    def get(registry: Any, key: Any, default: Any = None) -> Any:
        return dict.get(registry, key, default) if isinstance(key, str) else plain(registry, key)

    if kind is not dict:
        kind.get = get
    try:
        yield
    finally:
        if kind is not dict:
            kind.get = plain


def parts_with_experts(parts: Parts, mixtures: Sequence[Any], model: torch.nn.Module) -> Parts:
    """`parts` of what DeepSpeed left in the model, and those of what it made anew. To be called after it has."""
    made = dict(pair for mixture in mixtures for pair in _parts_of(mixture, model.get_submodule(mixture.moe_module_name)))
    return {id(parameter): made.get(id(parameter)) or parts[id(parameter)] for parameter in model.parameters()}


def group_of_experts(layout: Layout) -> Any:
    """The neighbouring ranks that hold all experts between them."""
    return groups._get_expert_parallel_group(f"ep_size_{layout.expert_parallel_size}")


def _is_stacked(model: torch.nn.Module, mixture: Any) -> bool:
    """Whether the experts lie in [experts, 2 x width, hidden] (gate over up) and [experts, hidden, width]."""
    if mixture.expert_storage != "fused_3d" or mixture.expert_w3_name is not None:
        return False
    experts = model.get_submodule(f"{mixture.moe_module_name}.{mixture.experts_name}")
    shapes = [tuple(getattr(experts, name).shape) for name in (mixture.expert_w1_name, mixture.expert_w2_name)]
    layout = classify_fused_gate_up_layout(*shapes)
    return layout is not None and layout.layout == "gate_up_first"


def _parts_of(mixture: Any, layer: Any) -> Iterator[tuple[int, Part]]:
    """(id, part) of the parameters of DeepSpeed's layer, by their names and places in the model that the workload built."""
    prefix = mixture.moe_module_name
    experts, width, hidden = mixture.num_experts, mixture.ffn_hidden_size, mixture.hidden_size
    held = experts // layer.ep_size
    first = layer.ep_rank * held
    up_and_gate = f"{prefix}.{mixture.experts_name}.{mixture.expert_w1_name}", (experts, 2 * width, hidden)
    down = f"{prefix}.{mixture.experts_name}.{mixture.expert_w2_name}", (experts, hidden, width)
    yield id(layer.experts.w1), Part(*up_and_gate, Box((first, 0, 0), (held, width, hidden)), expert=True)
    yield id(layer.experts.w3), Part(*up_and_gate, Box((first, width, 0), (held, width, hidden)), expert=True)
    yield id(layer.experts.w2), Part(*down, Box((first, 0, 0), (held, hidden, width)), expert=True)
    yield id(layer.router.gate.weight), Part(f"{prefix}.{mixture.router_name}.weight", (experts, hidden))
