"""`matrix.py` for products in fp8: `python float8.py FOLDER float8`. A decoder of sizes that are multiples of 16, rounding emulated."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import matrix
from matrix import Cell
from transformers import LlamaConfig, LlamaForCausalLM

EMULATED = {"float8_emulated": True}
COMPILED = {"compile": True, "compile_backend": "aot_eager"}
SETTINGS = {
    "wide": {},  # bf16
    "float8": {"float8": "tensorwise", **EMULATED},
    "rowwise": {"float8": "rowwise", **EMULATED},
    "mixed": {"float8": "rowwise_with_gw_hp", **EMULATED},
    "compiled": {"float8": "tensorwise", **EMULATED, **COMPILED},
}
WIDE = [Cell(stage, 2, "bf16", model="wide") for stage in range(4)]
FLOAT8 = [cell._replace(model="float8") for cell in WIDE]
OTHERS = [cell._replace(model=recipe) for cell in WIDE for recipe in ("rowwise", "mixed")]
AGAIN = [FLOAT8[3]._replace(recompute="full"), FLOAT8[2]._replace(recompute="selective")]
FASTER = [WIDE[stage]._replace(model="compiled") for stage in (1, 3)]
PIPE, SHARED, LEFT = FLOAT8[1]._replace(stages=2), FLOAT8[3]._replace(shared=2), FLOAT8[3]._replace(offload="optimizer_parameters")
RESUMED = [(layout, layout) for layout in FLOAT8] + [(FLOAT8[3], FLOAT8[0]), (FLOAT8[0], FLOAT8[2]), (PIPE, FLOAT8[3])]
RESUMED += [(FLOAT8[1], WIDE[3]), (WIDE[2], FLOAT8[1])]


def wide():
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=13, tie_word_embeddings=True, use_cache=False, **shape))


if __name__ == "__main__":
    assert "torchao" not in sys.modules, "warm processes import it for every job"
    matrix.MODELS.update(dict.fromkeys(SETTINGS, wide))
    matrix.SETTINGS.update(SETTINGS)
    matrix.STEPS.update(dict.fromkeys(SETTINGS, 6))
    matrix.RUNS["float8"] = ([*WIDE, *FLOAT8, *OTHERS, *AGAIN, *FASTER, PIPE, SHARED, LEFT], RESUMED)
    matrix.main(Path(sys.argv[1]), "float8")
