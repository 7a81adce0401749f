"""Muon for the matrices inside a model, AdamW for the rest, whatever the ZeRO stage.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) steps along the nearest orthogonal matrix to its momentum. The momentum is
element by element, so it can be cut anywhere; the orthogonal matrix needs the whole. Under ZeRO each matrix is put together on the rank
that holds most of it, made orthogonal there once, and each rank gets its part back: two exchanges of what lies on other ranks.

A step has the size of AdamW's (0.2 sqrt(max(rows, columns)): Liu et al. 2025, arXiv:2502.16982, section 2.2), so that one learning rate
and one weight decay serve both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
import torch.distributed as dist
from torch.optim.adamw import adamw

Shape = tuple[int, ...]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


@dataclass(frozen=True)
class Held:
    """Elements [start, start + length) of a flattened matrix lie at `offset` of the partition of `rank`."""

    rank: int
    offset: int
    start: int
    length: int


@dataclass(frozen=True)
class Matrix:
    """A weight of shape `shape` and the ranks that hold its parts; `owner` makes it orthogonal."""

    shape: Shape
    held: tuple[Held, ...]
    owner: int


@dataclass(frozen=True)
class Placement:
    """The matrices of one flat tensor of masters. `group`: who holds the other parts; None: this rank holds all."""

    matrices: tuple[Matrix, ...]
    group: Any = None


def hidden_matrices(model: torch.nn.Module) -> frozenset[int]:
    """Ids of the weights for Muon: of two or more dimensions, and of neither an embedding nor the head.

    The head is what `get_output_embeddings()` says (transformers' models have it), else the model's last linear layer. To be called
    before DeepSpeed gets the model: ZeRO 3 takes the shapes away.
    """
    own = getattr(model, "get_output_embeddings", None)
    head = own() if own is not None else None
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    heads = [head] if head is not None else linear[-1:]
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    outer = {id(parameter) for module in [*embeddings, *heads] for parameter in module.parameters()}
    return frozenset(id(parameter) for parameter in model.parameters() if parameter.dim() > 1 and id(parameter) not in outer)


def owners(holders: Sequence[Mapping[int, int]]) -> list[int]:
    """Who makes each matrix orthogonal, from the number of its elements by rank: of those that hold most the one with least to do."""
    load: dict[int, int] = {}
    chosen = []
    for held in holders:
        most = max(held.values())
        owner = min((rank for rank, count in held.items() if count == most), key=lambda rank: (load.get(rank, 0), rank))
        load[owner] = load.get(owner, 0) + sum(held.values())
        chosen.append(owner)
    return chosen


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About U V^T of the singular value decomposition U S V^T, by five Newton-Schulz iterations. Shape [rows, columns], fp32.

    On a GPU it is computed in bf16, which the iteration bears; on a CPU in fp32, where bf16 is slow.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """Muon with Nesterov momentum for the parameters in `hidden` (by id), AdamW for the others."""

    def __init__(
        self, groups: Iterable[Mapping[str, Any]], hidden: frozenset[int], lr: float, betas: tuple[float, float], eps: float,
        weight_decay: float, momentum: float,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        split = [
            {**group, "params": params, "orthogonal": inside}
            for group in groups
            for inside in (True, False)
            if (params := [parameter for parameter in group["params"] if (id(parameter) in hidden) is inside])
        ]
        super().__init__(split, defaults)
        self.hidden = hidden
        self._placed: dict[torch.Tensor, Placement] = {}

    def place(self, placed: Mapping[torch.Tensor, Placement]) -> None:
        """Which matrices the masters hold. To be called before the first step that counts, unless each master is one whole weight."""
        self._placed = dict(placed)

    def ensure_state(self, master: torch.Tensor) -> None:
        """What the first step would make: Muon's for masters that were placed, AdamW's for the others."""
        state = self.state[master]
        if state:
            return
        if master in self._placed:
            state["momentum_buffer"] = torch.zeros_like(master.detach())
            return
        state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
        state["exp_avg"] = torch.zeros_like(master.detach())
        state["exp_avg_sq"] = torch.zeros_like(master.detach())

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """`closure` is torch's interface and must be None. Ranks that share matrices step together."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            masters = [master for master in group["params"] if master.grad is not None]
            if group["orthogonal"]:
                for master in masters:
                    self._muon(master, group["lr"], group["weight_decay"], group["momentum"])
            elif masters:
                self._adamw(masters, group)

    def _muon(self, master: torch.Tensor, lr: float, weight_decay: float, momentum: float) -> None:
        placement = self._placed.setdefault(master, _whole(master))
        self.ensure_state(master)
        buffer = self.state[master]["momentum_buffer"]
        buffer.mul_(momentum).add_(master.grad)
        direction = _orthogonal_parts(master.grad.add(buffer, alpha=momentum).reshape(-1), placement)
        master.mul_(1 - lr * weight_decay).add_(direction.view(master.shape), alpha=-lr)

    def _adamw(self, masters: list[torch.Tensor], group: Mapping[str, Any]) -> None:
        for master in masters:
            self.ensure_state(master)
        states = [self.state[master] for master in masters]
        averages, squares, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
        adamw(
            masters, [master.grad for master in masters], averages, squares, [], steps, fused=masters[0].is_cuda, amsgrad=False,
            beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
            maximize=False,
        )  # fmt: skip


def _whole(master: torch.Tensor) -> Placement:
    return Placement((Matrix(tuple(master.shape), (Held(0, 0, 0, master.numel()),), 0),))


def _orthogonal_parts(mine: torch.Tensor, placement: Placement) -> torch.Tensor:
    """This rank's part of each matrix made orthogonal and scaled. `mine`: its part of them as they are, flat; padding becomes 0."""
    rank = dist.get_rank(placement.group) if placement.group is not None else 0
    sent = [(matrix.owner, part) for matrix in placement.matrices for part in matrix.held if part.rank == rank]
    owned = [(mine.new_empty(math.prod(matrix.shape)), matrix) for matrix in placement.matrices if matrix.owner == rank]
    outgoing = [(owner, mine[part.offset : part.offset + part.length]) for owner, part in sent]
    incoming = [(part.rank, whole[part.start : part.start + part.length]) for whole, matrix in owned for part in matrix.held]
    _exchange(outgoing, incoming, placement.group, mine)
    for whole, matrix in owned:
        weight = whole.view(matrix.shape[0], -1)
        weight.copy_(orthogonal(weight) * (0.2 * math.sqrt(max(weight.shape))))
    result = torch.zeros_like(mine)
    returned = [(owner, result[part.offset : part.offset + part.length]) for owner, part in sent]
    _exchange(incoming, returned, placement.group, mine)
    return result


def _exchange(outgoing: list[tuple[int, torch.Tensor]], incoming: list[tuple[int, torch.Tensor]], group: Any, like: torch.Tensor) -> None:
    """Send each tensor of `outgoing` to its rank of the group, fill those of `incoming`; between two ranks they go in order."""
    if group is None:
        for (_, source), (_, target) in zip(outgoing, incoming, strict=True):
            target.copy_(source)
        return
    outgoing, incoming = (sorted(some, key=itemgetter(0)) for some in (outgoing, incoming))
    ranks = range(dist.get_world_size(group))
    sizes = [[sum(tensor.numel() for rank, tensor in some if rank == other) for other in ranks] for some in (outgoing, incoming)]
    sent = torch.cat([like.new_empty(0), *(tensor for _, tensor in outgoing)])
    found = like.new_empty(sum(sizes[1]))
    dist.all_to_all_single(found, sent, sizes[1], sizes[0], group=group)
    for (_, target), part in zip(incoming, found.split([tensor.numel() for _, tensor in incoming]), strict=True):
        target.copy_(part)
