from __future__ import annotations

import json
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from orchestrator.runtime.seeding import random_states, seed_model, seed_rank, set_random_states, undisturbed  # noqa: E402


def draw():
    return random.random(), float(np.random.standard_normal()), float(torch.rand(()))


def test_states_go_through_json_and_back():
    seed_rank(7, 3, 1)
    draw()
    states = json.loads(json.dumps(random_states(), allow_nan=False))
    expected = [draw(), draw()]
    set_random_states(states)
    assert [draw(), draw()] == expected


def test_ranks_steps_and_stages_draw_different_numbers():
    seen = set()
    for step in (0, 5):
        for rank in (0, 1):
            for stage in (0, 1):
                seed_rank(7, step, rank, stage)
                seen.add(draw())
    assert len(seen) == 8


def test_the_model_seed_is_the_same_everywhere():
    seed_model(7)
    first = draw()
    seed_model(7)
    assert draw() == first
    seed_model(8)
    assert draw() != first


def test_undisturbed_gives_the_numbers_back():
    seed_rank(1, 0, 0)
    expected = draw()
    seed_rank(1, 0, 0)
    with undisturbed():
        draw()
        seed_model(5)
    assert draw() == expected
