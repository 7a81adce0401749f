"""Sequence parallelism (Ulysses, Jacobs et al. 2023, arXiv:2309.14509): the ranks of a group share the positions of each sample.

What a decoder does besides attention it does to each position alone, so a rank computes on its own slice. Attention looks at all
positions: one all-to-all gives each rank all positions of some heads, another gives it back all heads of its own positions.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.sequence.layer import _dim_zero_all_to_all, register_all_to_all_group
from torch.nn.functional import scaled_dot_product_attention

from orchestrator.errors import ConfigError, WorkloadError
from orchestrator.layout import Layout
from orchestrator.workload import Workload

Batch = Mapping[str, torch.Tensor]

_NAME = "sequence_parallel"  # of the attention, in transformers' table
_FLAG = "parallelism.sequence_parallel_size"
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


def fields_of(workload: Workload, layout: Layout) -> dict[str, int]:
    """The fields of a batch that are cut (`workload.OffersSequence`); empty without sequence parallelism.

    Raises ConfigError for a workload that names none.
    """
    size = layout.sequence_parallel_size
    if size == 1:
        return {}
    found = dict(getattr(workload, "sequence_fields", {}))
    if not found:
        why = f"{type(workload).__name__} has no sequence_fields, which say what of a batch runs along a sequence"
        raise ConfigError(f"{_FLAG}={size} is not possible: allowed is 1, because {why}.")
    return found


class SequenceShare:
    """The slice of every sequence that a rank has, and the attention over whole ones.

    `rank` is that among all ranks, `group` what `group_of` made.
    """

    def __init__(self, layout: Layout, fields: Mapping[str, int], rank: int, group: Any = None) -> None:
        self._layout = layout
        self._fields = fields
        self._size = layout.sequence_parallel_size
        self._rank = layout.sequence_parallel_rank(rank)
        self._group = group

    def adapt(self, model: torch.nn.Module) -> None:
        """Give the model an attention that spans the group, and the positions of its slice. Nothing where the size is 1.

        Raises ConfigError for a model that cannot be told either, or that mixes positions in another way.
        """
        if self._size == 1:
            return
        from transformers import AttentionInterface, AttentionMaskInterface  # takes a second, which other jobs need not wait for
        from transformers.masking_utils import sdpa_mask

        check_model(model, self._layout)
        AttentionInterface.register(_NAME, self._attend)
        AttentionMaskInterface.register(_NAME, sdpa_mask)  # makes a mask only where causality does not say all
        model.set_attn_implementation(_NAME)
        if model.config._attn_implementation != _NAME:
            raise _refused(model, self._size)
        model.register_forward_pre_hook(self._add_positions, with_kwargs=True)

    def cut(self, batch: Batch) -> Batch:
        """Positions [rank n, (rank + 1) n) of the fields that run along the sequence, n = positions / size; the others whole.

        Raises WorkloadError for a field that is not there, ConfigError for a number of positions that cannot be shared.
        """
        missing = [name for name in self._fields if name not in batch]
        if missing:
            raise WorkloadError(f"sequence_fields names {', '.join(missing)}, but a batch has the fields {', '.join(batch)}.")
        return {name: self._slice(name, value) if name in self._fields else value for name, value in batch.items()}

    def _slice(self, name: str, value: torch.Tensor) -> torch.Tensor:
        more = self._fields[name]
        positions = value.shape[1] - more
        if positions % self._size:
            raise ConfigError(
                f"{_FLAG}={self._size} is not possible: allowed is a divisor of the {positions} positions of a sample's field '{name}'."
            )
        count = positions // self._size
        return value[:, self._rank * count : (self._rank + 1) * count + more].contiguous()

    def _add_positions(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A model that is given no positions would count from 0 on every rank.

        Those of a workload are refused: they may count from 0 too, or say where packed texts begin, which one rank alone cannot see.
        """
        if kwargs.get("position_ids") is not None:
            raise _cannot_cut(self._size, "the workload gives the model position_ids, which must be those of the whole sequence")
        given = [*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        tokens = next(value for value in given if value is not None)
        count = tokens.shape[1]
        kwargs["position_ids"] = torch.arange(self._rank * count, (self._rank + 1) * count, device=tokens.device).unsqueeze(0)
        return args, kwargs

    def _attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
        dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, sliding_window: int | None = None, **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        """Attention as transformers calls it. Query, key, value: [samples, heads, own positions, width]; returns
        [samples, own positions, heads, width]."""
        positions = query.shape[2] * self._size
        self._check_plain(module, attention_mask, sliding_window, positions, kwargs)
        shared = math.lcm(key.shape[1], self._size) // key.shape[1]  # fewer heads than ranks: each goes to several
        if shared > 1:
            key, value = (heads.repeat_interleave(shared, dim=1) for heads in (key, value))
        query, key, value = self._gather_positions(query, key, value)
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        grouped = key.shape[1] != query.shape[1]
        found = scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, scale=scaling, is_causal=causal, enable_gqa=grouped
        )  # fmt: skip
        return self._gather_heads(found).transpose(1, 2).contiguous(), None

    def _check_plain(
        self, module: torch.nn.Module, mask: torch.Tensor | None, window: int | None, positions: int, more: Mapping[str, Any]
    ) -> None:
        """What a mask or bias says is about this rank's positions only, and attention is over all."""
        if mask is not None or (window is not None and window < positions):
            raise _cannot_cut(self._size, f"{type(module).__name__} masks more than causality does (padding or a window)")
        if more.get("position_bias") is not None or more.get("softcap") is not None:
            raise _cannot_cut(self._size, f"{type(module).__name__} changes the scores (a bias or a soft cap)")

    def _gather_positions(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """[samples, heads, own positions, width] each -> [samples, own heads, positions, width], in one exchange."""
        by_receiver = [tensor.unflatten(1, (self._size, -1)).movedim(1, 0) for tensor in tensors]
        received = _dim_zero_all_to_all(self._group, torch.cat(by_receiver, dim=2))
        parts = received.split([tensor.shape[2] for tensor in by_receiver], dim=2)
        return [part.movedim(0, 2).flatten(2, 3) for part in parts]

    def _gather_heads(self, tensor: torch.Tensor) -> torch.Tensor:
        """[samples, own heads, positions, width] -> [samples, heads, own positions, width]."""
        by_receiver = tensor.unflatten(2, (self._size, -1)).movedim(2, 0)
        return _dim_zero_all_to_all(self._group, by_receiver).movedim(0, 1).flatten(1, 2)


def group_of(layout: Layout) -> Any:
    """The ranks that differ from this one in their sequence-parallel rank only; None where there are none. All ranks together."""
    if layout.sequence_parallel_size == 1:
        return None
    members: dict[tuple[int, int, int], list[int]] = {}
    for rank in range(layout.world_size):
        place = layout.pipeline_stage(rank), layout.data_parallel_rank(rank), layout.tensor_parallel_rank(rank)
        members.setdefault(place, []).append(rank)
    mine, _ = dist.new_subgroups_by_enumeration(list(members.values()))
    register_all_to_all_group(mine)
    return mine


def check_model(model: torch.nn.Module, layout: Layout) -> None:
    """Raises ConfigError for a model whose slices, put together, would not be the whole."""
    from transformers import PreTrainedModel

    size, together = layout.sequence_parallel_size, layout.tensor_parallel_size
    positioned = "position_ids" in inspect.signature(model.forward).parameters
    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder or not positioned:
        raise _refused(model, size)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    if heads % (size * together) or (getattr(config, "num_key_value_heads", None) or heads) % together:
        each = f" for each of parallelism.tensor_parallel_size={together} ranks" if together > 1 else ""
        raise ConfigError(f"{_FLAG}={size} is not possible: allowed is a divisor of the model's {heads} attention heads{each}.")
    kinds = {*(getattr(config, "layer_types", None) or ()), "full_attention"} - {"full_attention"}
    if kinds or getattr(config, "attention_chunk_size", None):
        raise _cannot_cut(size, f"{type(model).__name__} has layers that are not full attention ({', '.join(sorted(kinds)) or 'chunked'})")
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if kind in _LENGTH_DEPENDENT_ROPE:
        raise _cannot_cut(size, f"rotary positions of the type {kind} depend on the length of what a rank sees")


def _cannot_cut(size: int, why: str) -> ConfigError:
    return ConfigError(f"{_FLAG}={size} is not possible: allowed is 1, because {why}.")


def _refused(model: torch.nn.Module, size: int) -> ConfigError:
    return ConfigError(
        f"{_FLAG}={size} is not possible for the model {type(model).__name__}: allowed is 1, or a transformers model whose attention "
        "can be exchanged and that takes position_ids, such as Llama."
    )
