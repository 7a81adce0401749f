"""The chain of a decoder computes what the decoder computes, bit for bit."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from orchestrator.errors import WorkloadError  # noqa: E402
from workloads.layers import CHAINS, decoder_layers  # noqa: E402

SHAPE = {
    "vocab_size": 13, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "use_cache": False,
}  # fmt: skip
WINDOW = {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 2}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "window"), [(name, {}) for name in CHAINS] + [(name, WINDOW) for name in CHAINS if "Llama" not in name])
def test_a_chain_is_its_model(name, window, attention):
    torch.manual_seed(0)
    config = getattr(transformers, name.replace("ForCausalLM", "Config"))
    model = getattr(transformers, name)(config(**SHAPE, **window, attn_implementation=attention))
    tokens = torch.randint(0, 13, (3, 17))
    found = {"tokens": torch.nn.functional.pad(tokens, (0, 1))}
    for layer in decoder_layers(model, lambda batch: batch["tokens"][:, :-1]):
        found = layer(found)
    assert torch.equal(found.logits, model(input_ids=tokens).logits)


def test_another_decoder_is_refused_by_name():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=5))
    with pytest.raises(WorkloadError, match=r"^a GPT2LMHeadModel cannot be cut into layers: possible are LlamaForCausalLM, "):
        decoder_layers(model, lambda batch: batch["tokens"])
