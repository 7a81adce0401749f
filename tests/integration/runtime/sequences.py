"""`matrix.py` for sequence parallelism: `python sequences.py FOLDER sequence`. Decoders whose sequences and heads ranks can share."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import matrix
from matrix import Cell
from transformers import AutoConfig, AutoModelForCausalLM

DECODERS = {
    "long": {"model_type": "llama", "intermediate_size": 37, "num_key_value_heads": 2},  # which four ranks have to repeat
    "gpt2": {"model_type": "gpt2", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "qwen3": {"model_type": "qwen3", "intermediate_size": 37, "num_key_value_heads": 1, "head_dim": 8},
}

ONE = {model: Cell(0, 1, model=model) for model in DECODERS}
LONG = ONE["long"]
PAIR, QUAD = [[LONG._replace(zero_stage=stage, world=world, shared=2) for stage in range(4)] for world in (2, 4)]
ALL_FOUR, BOTH, TENSOR = QUAD[2]._replace(shared=4), QUAD[1]._replace(together=2), Cell(1, 2, together=2, model="long")
NARROW, LEFT = PAIR[0]._replace(precision="bf16"), PAIR[3]._replace(offload="optimizer_parameters")
SHARED = [*PAIR, *QUAD, ALL_FOUR, BOTH, NARROW, PAIR[3]._replace(precision="bf16"), LEFT]
SHARED += [BOTH._replace(zero_stage=stage) for stage in (0, 2, 3)] + [PAIR[stage]._replace(offload="optimizer") for stage in (1, 2)]
SHARED += [PAIR[1]._replace(model=model) for model in ("gpt2", "qwen3")]
AGAIN = [PAIR[stage]._replace(recompute="full") for stage in (1, 3)]
RESUMED = [(layout, layout) for layout in (*PAIR, QUAD[3], BOTH, NARROW, LEFT)]
RESUMED += [(layout, LONG) for layout in (*PAIR, *QUAD, ALL_FOUR, BOTH)] + [(LONG, layout) for layout in (*PAIR, BOTH)]
RESUMED += [(QUAD[1], TENSOR), (ALL_FOUR, PAIR[3])]


def decoder(name):
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 8, **DECODERS[name]}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(vocab_size=13, use_cache=False, **shape), attn_implementation="sdpa")


if __name__ == "__main__":
    matrix.MODELS.update({name: partial(decoder, name) for name in DECODERS})
    matrix.MICRO = 6
    matrix.LENGTHS.update(dict.fromkeys(DECODERS, 8))
    matrix.RUNS["sequence"] = ([*ONE.values(), LONG._replace(zero_stage=1, precision="bf16"), *SHARED, *AGAIN], RESUMED)
    matrix.main(Path(sys.argv[1]), "sequence")
