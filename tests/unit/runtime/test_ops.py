"""Which op a job needs, and what a node says that does not have it."""

from __future__ import annotations

import pytest
from deepspeed.ops.op_builder.builder import OpBuilder

from orchestrator.errors import ConfigError
from orchestrator.runtime.ops import load_op, needed
from orchestrator.spec import Offload, ParallelismSpec


@pytest.mark.parametrize(
    "asked, ops",
    [
        ({"zero_stage": 3}, {}),
        ({"zero_stage": 3, "offload_optimizer": Offload.cpu}, {}),
        ({"zero_stage": 3, "offload_optimizer": Offload.nvme, "nvme_path": "/d"}, {"async_io": "parallelism.offload_optimizer=nvme"}),
        ({"zero_stage": 3, "zero_quantized_weights": True}, {"quantizer": "parallelism.zero_quantized_weights=true"}),
        ({"zero_stage": 3, "zero_quantized_gradients": True}, {"quantizer": "parallelism.zero_quantized_gradients=true"}),
    ],
)
def test_only_state_on_a_disk_and_few_bits_need_an_op(asked, ops):
    assert needed(ParallelismSpec(**asked)) == ops


@pytest.mark.parametrize("name, module, means", [("async_io", "pin_memory", "libaio-dev"), ("quantizer", "quantizer", "nvcc")])
def test_a_node_without_the_op_says_how_to_get_it_and_compiles_nothing(tmp_path, monkeypatch, name, module, means):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    said = rf"^parallelism\.x=1 needs DeepSpeed's op {module}, .*No such file.*{means}.* `python -m orchestrator\.runtime\.ops {name}` "
    with pytest.raises(ConfigError, match=said):
        load_op(name, "parallelism.x=1")
    assert not list(tmp_path.rglob("*.so"))
