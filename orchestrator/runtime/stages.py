"""Where a chain of layers is cut into the stages of a pipeline. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import ConfigError

Kinds = frozenset[str]
"""Parameter groups that a layer has trainable weights in."""


def cut(sizes: Sequence[int], kinds: Sequence[Kinds], stages: int) -> tuple[int, ...]:
    """`stages + 1` bounds: stage s has the layers [bounds[s], bounds[s + 1]). `sizes`: parameters of each layer.

    The largest stage is as small as can be. Every stage gets a layer of each kind that there is: DeepSpeed sums up the gradient's
    norm group by group, so all stages must have the same groups. Raises ConfigError if there are too few layers for that.
    """
    most = _most_stages(kinds)
    if stages > most:
        needed = " and ".join(sorted(frozenset().union(*kinds)))
        raise ConfigError(
            f"parallelism.pipeline_parallel_size={stages} is not possible for this model of {len(sizes)} layers: "
            f"allowed is at most {most}, because each stage needs trainable {needed}."
        )
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, (0,))}
    for _ in range(stages):
        best = _with_one_more(best, sizes, kinds)
    return best[len(sizes)][1]


def _with_one_more(
    best: dict[int, tuple[int, tuple[int, ...]]], sizes: Sequence[int], kinds: Sequence[Kinds]
) -> dict[int, tuple[int, tuple[int, ...]]]:
    """From the best cuts of the first n layers (largest stage, bounds), for each n, to those with a stage more."""
    every, longer = frozenset().union(*kinds), {}
    for end in range(1, len(sizes) + 1):
        found, size, held = [], 0, Kinds()
        for start in range(end - 1, -1, -1):
            size, held = size + sizes[start], held | kinds[start]
            if start in best and held == every:
                largest, bounds = best[start]
                found.append((max(largest, size), (*bounds, end)))
        if found:
            longer[end] = min(found, key=lambda cut: cut[0])  # among equals the shortest last stage
    return longer


def _most_stages(kinds: Sequence[Kinds]) -> int:
    every, held, count = frozenset().union(*kinds), Kinds(), 0
    for kind in kinds:
        held |= kind
        if held == every:
            held, count = Kinds(), count + 1
    return count
