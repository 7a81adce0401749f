"""What cannot be compiled is refused before a step is made."""

from __future__ import annotations

import pytest
from torch import nn

from orchestrator.errors import ConfigError
from orchestrator.layout import Layout
from orchestrator.runtime.compilation import compile_blocks
from orchestrator.spec import CompileBackend, TrainingSpec


def asked(backend=CompileBackend.aot_eager, compile=True):
    return TrainingSpec(max_steps=1, global_batch_size=1, micro_batch_size=1, compile=compile, compile_backend=backend)


def layout(zero_stage):
    return Layout(world_size=1, micro_batch_size=1, gradient_accumulation_steps=1, zero_stage=zero_stage)


def test_without_a_compiler_the_way_out_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"^training.compile=true is not possible: no C\+\+ compiler .* training.compile=false"):
        compile_blocks(nn.Linear(2, 2), asked(CompileBackend.inductor), layout(1))
    compile_blocks(nn.Linear(2, 2), asked(), layout(1))
    compile_blocks(nn.Linear(2, 2), asked(CompileBackend.inductor, compile=False), layout(1))
    (tmp_path / "g++").touch(mode=0o755)
    compile_blocks(nn.Linear(2, 2), asked(CompileBackend.inductor), layout(1))


def test_at_zero_3_blocks_are_gathered_whole_and_a_model_without_blocks_is_refused():
    model = nn.Sequential(nn.ModuleList([nn.Linear(2, 2)]))
    compile_blocks(model, asked(), layout(3))
    assert model[0][0]._z3_leaf and list(model.state_dict()) == ["0.0.weight", "0.0.bias"]
    with pytest.raises(ConfigError, match=r"^training.compile=true is not possible: the model Linear has no blocks .*zero_stage=0, 1 or 2"):
        compile_blocks(nn.Linear(2, 2), asked(), layout(3))
