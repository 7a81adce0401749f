"""Rotary positions over a longer context than the one that their wavelengths were made for, as transformers' `rope_parameters`.

    linear    positions are divided by the factor (Chen et al. 2023)
    yarn      only long wavelengths are, by a ramp over their rotations (Peng et al. 2023)
    llama3    only long wavelengths are, by Llama 3.1's bounds: those that fit into the original length less than once are stretched
              by the whole factor, those that fit more than four times are not

transformers' other kinds change with the longest sequence that was seen (dynamic, longrope): what such a model computes would depend
on what came before.
"""

from __future__ import annotations

import math
from typing import Any

from orchestrator.errors import ConfigError, nearest

from .requirements import require

TYPES = ("linear", "yarn", "llama3")
_FLAG = "model.options.rope_scaling"
_REPLACED = ("default", "yarn", "llama3")  # the others do not say which length they were made for


def check_scaling(factor: float, kind: str) -> None:
    """Raises ConfigError for a factor or a type that cannot be."""
    require(1 <= factor < math.inf, _FLAG, factor, "1 (not scaled) or more")
    if kind not in TYPES:
        raise ConfigError(f"{_FLAG}_type={kind} is not possible: allowed is {', '.join(TYPES)}.{nearest(kind, TYPES)}")


def rope_parameters(theta: float, factor: float, kind: str, original: int) -> dict[str, Any]:
    """For a context of `factor` times `original` positions; `factor` 1: not scaled."""
    if factor == 1:
        return {"rope_type": "default", "rope_theta": theta}
    more: dict[str, Any] = {}
    if kind == "llama3":
        more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind != "linear":
        more["original_max_position_embeddings"] = original
    return {"rope_type": kind, "factor": factor, "rope_theta": theta, **more}


def rescale(config: Any, factor: float, kind: str) -> None:
    """Make a stored model's `config` that of a context `factor` times as long as the one it was first trained with; 1: leave it.

    Raises ConfigError for a model without rotary positions, with several kinds of them, or with some whose original length is not told.
    """
    if factor == 1:
        return
    stored = getattr(config, "rope_parameters", None) or {}
    found = stored.get("rope_type", "default") if "rope_theta" in stored else ""
    if found not in _REPLACED:
        why = f"scales its positions by '{found}' already" if found else "has no rotary positions that all layers share"
        raise ConfigError(f"{_FLAG}={factor} is not possible: allowed is 1, because the model of model.options.pretrained {why}.")
    told = getattr(config, "original_max_position_embeddings", None) or stored.get("original_max_position_embeddings")
    original = told or config.max_position_embeddings
    kept = {"partial_rotary_factor": stored["partial_rotary_factor"]} if "partial_rotary_factor" in stored else {}
    config.max_position_embeddings = round(original * factor)
    config.rope_parameters = {**kept, **rope_parameters(stored["rope_theta"], factor, kind, original)}
