"""Figures of mixtures of experts: how evenly tokens are routed, and how many parameters a token meets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


def balance_loss(router_logits: Sequence[torch.Tensor], experts_per_token: int) -> torch.Tensor:
    """Sum over the layers of  E sum_i f_i P_i  (Switch Transformer, Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6). Scalar.

    `router_logits`: for each layer [tokens, E]. f_i is the share of the tokens' choices that fall on expert i (a token makes
    `experts_per_token` of them; Switch makes one), P_i the mean of its softmax probability. A layer's term is 1 where the load is even
    and at most E. The means are over the tokens given, those of one micro batch on one rank, and the product of two means is not
    the mean of products: cutting a batch into other micro batches changes this loss a little, spreading micro batches over ranks does not.
    """
    terms = []
    for logits in router_logits:
        probability = torch.softmax(logits.float(), -1).mean(0)
        share = expert_counts(logits, experts_per_token).float() / (logits.shape[0] * experts_per_token)
        terms.append(logits.shape[-1] * (share.to(probability.dtype) * probability).sum())
    return torch.stack(terms).sum()


def expert_counts(logits: torch.Tensor, experts_per_token: int) -> torch.Tensor:
    """How often each expert is chosen by tokens with these `logits` [tokens, E]: int64[E], the sum is tokens x `experts_per_token`."""
    chosen = torch.softmax(logits.float(), -1).topk(experts_per_token, -1).indices
    return functional.one_hot(chosen, logits.shape[-1]).sum((0, 1))


def imbalance(counts: Sequence[Sequence[int]]) -> float:
    """A layer's largest load of an expert over the mean load, mean over the layers; 1: all are equally busy. `counts` [layers, E]."""
    return sum(max(row) * len(row) / sum(row) for row in counts) / len(counts)


def active_parameters(model: nn.Module, experts_per_token: int) -> int:
    """Parameters that one token meets: of a layer's experts those it is routed to. The first dimension of their weights counts them."""
    return sum(
        parameter.numel() * experts_per_token // parameter.shape[0] if ".experts." in name else parameter.numel()
        for name, parameter in model.named_parameters()
    )
