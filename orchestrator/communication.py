"""How many bytes a rank sends per optimizer step, by kind of collective, from the layout alone. Pure.

Ring algorithms (Patarin & Yuan 2009): of S bytes over n ranks a rank sends 2 S (n - 1) / n in an all-reduce, S (n - 1) / n in a
reduce-scatter and an all-gather. What ZeRO exchanges: Rajbhandari et al. 2020 (arXiv:1910.02054, section 7), and how often with
gradient accumulation: ZeRO 0 and 1 reduce gradients once per step, 2 and 3 after every micro batch, because they do not keep them whole.
"""

from __future__ import annotations

from orchestrator.layout import Layout


def bytes_per_step(layout: Layout, parameters: int, element_bytes: int, *, to_owner: bool, width: int = 0) -> dict[str, float]:
    """Keys: all_reduce, reduce, reduce_scatter, all_gather; only what is not 0. Empty where layers, sequences or experts are dealt out.

    `parameters`: trainable elements that a rank computes with. `to_owner`: gradients of ZeRO 1 and 2 are reduced to the rank that keeps
    them, not to all. `width`: sum over the divided matrices of the width of what tensor parallelism exchanges for them, times the tokens
    of a sample. For ZeRO 3 an upper bound: DeepSpeed keeps small parameters, and others that are used again soon, whole.
    """
    if max(layout.pipeline_parallel_size, layout.sequence_parallel_size, layout.expert_parallel_size) > 1:
        return {}
    whole = float(parameters * element_bytes) * _share(layout.data_parallel_size)
    micro_batches = layout.gradient_accumulation_steps
    found = dict.fromkeys(("all_reduce", "reduce", "reduce_scatter", "all_gather"), 0.0)
    if layout.zero_stage == 0:
        found["all_reduce"] = 2 * whole
    elif layout.zero_stage < 3:
        times = micro_batches if layout.zero_stage == 2 else 1
        found["reduce" if to_owner else "all_reduce"] = (1 if to_owner else 2) * times * whole
        found["all_gather"] = whole
    else:
        found["reduce_scatter"] = micro_batches * whole
        found["all_gather"] = 2 * micro_batches * whole  # for the forward and for the backward pass
    activations = float(width * layout.micro_batch_size * micro_batches * element_bytes)
    found["all_reduce"] += 2 * activations * _share(layout.tensor_parallel_size)
    return {name: sent for name, sent in found.items() if sent}


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks
