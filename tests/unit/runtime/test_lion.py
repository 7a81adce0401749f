"""Lion against the formulas of its paper, and that a cut of the parameters changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.runtime.lion import Lion


def train(weights, gradients, **settings):
    """The weights after a step for each gradient."""
    parameter = torch.nn.Parameter(torch.tensor(weights, dtype=torch.float64))
    optimizer = Lion([{"params": [parameter]}], **settings)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return parameter.detach().numpy()


def test_it_follows_the_paper():
    rng = np.random.default_rng(1)
    weights, gradients = rng.normal(size=50), rng.normal(size=(8, 50))
    w, m = weights.copy(), np.zeros(50)
    for g in gradients:
        w = w - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.5 * w)
        m = 0.99 * m + 0.01 * g
    assert train(weights, gradients, lr=0.01, betas=(0.9, 0.99), weight_decay=0.5) == pytest.approx(w, abs=1e-12)


def test_each_element_goes_its_own_way():
    rng = np.random.default_rng(2)
    weights, gradients = rng.normal(size=30), rng.normal(size=(5, 30))
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.1}
    parts = [train(weights[cut], gradients[:, cut], **settings) for cut in (slice(0, 11), slice(11, 30))]
    assert np.concatenate(parts).tolist() == train(weights, gradients, **settings).tolist()


def test_a_parameter_without_a_gradient_stays():
    parameter = torch.nn.Parameter(torch.ones(3))
    Lion([parameter], lr=1.0, betas=(0.9, 0.99), weight_decay=1.0).step()
    assert parameter.tolist() == [1, 1, 1]


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="no closure"):
        Lion([torch.nn.Parameter(torch.ones(1))], lr=1.0, betas=(0.9, 0.99), weight_decay=0.0).step(lambda: 0.0)
