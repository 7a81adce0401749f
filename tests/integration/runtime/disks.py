"""`matrix.py` for the optimizer's state in files: `python disks.py FOLDER disk`. A decoder wide enough for files, with what is too small
for one."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import matrix
from matrix import Cell
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.runtime.ops import load_op

MEMORY = Cell(3, 2, model="wide")
DISK = MEMORY._replace(offload="disk")
IN_FILES = [DISK, DISK._replace(precision="bf16"), DISK._replace(optimizer="lion"), DISK._replace(optimizer="sgd")]
ELSEWHERE = Cell(1, 2, model="wide")
CROSS = [(DISK, ELSEWHERE), (MEMORY, DISK), (MEMORY._replace(precision="bf16"), DISK._replace(precision="bf16"))]


def wide():
    """1.6 million elements on two ranks: several sub-groups of at least 1 MiB, and the norms, which are too small."""
    shape = {"hidden_size": 256, "intermediate_size": 700, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=1500, tie_word_embeddings=True, use_cache=False, **shape))


if __name__ == "__main__":
    load_op("async_io", "this test")  # here, so that not every rank does it
    matrix.MODELS["wide"] = wide
    matrix.STEPS["wide"] = 6
    matrix.DECAY = 0.0  # an average of the weights and state in files exclude each other
    matrix.DISK = Path(sys.argv[1])
    calm = [MEMORY, *(cell._replace(offload="") for cell in IN_FILES[1:]), *IN_FILES]
    matrix.RUNS["disk"] = (calm, [(cell, cell) for cell in IN_FILES] + CROSS)
    matrix.main(Path(sys.argv[1]), "disk")
