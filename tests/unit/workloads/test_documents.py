"""With `document_mask` a text knows nothing of the texts that share its block."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.errors import ConfigError
from workloads.documents import check_positions, document_inputs

END = 0
FIRST, SECOND = [5, 6, 7], [END, 8, 9, 10]


def logits(model, tokens, masked=True):
    given = torch.tensor([tokens])
    with torch.no_grad():
        return model(input_ids=given, **(document_inputs(given, END) if masked else {})).logits[0]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, use_cache=False, attn_implementation="sdpa", **shape)).eval()


def test_a_text_is_read_as_if_it_stood_alone_whatever_stands_before_and_after(model):
    alone = logits(model, SECOND)
    for before, after in (([], [END, 3]), (FIRST, []), ([11, 12, END, 13], [END, END, 4]), ([END], [END])):
        found = logits(model, [*before, *SECOND, *after])[len(before) : len(before) + len(SECOND)]
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(model, [*FIRST, *SECOND])[:3], logits(model, FIRST, masked=False), rtol=1e-5, atol=1e-6)
    unmasked = [logits(model, [*before, *SECOND], masked=False)[-4:] for before in ([11, 12, 13], FIRST)]
    assert (unmasked[0] - unmasked[1]).abs().max() > 1e-4


def test_positions_and_mask_of_a_block_of_three_texts():
    found = document_inputs(torch.tensor([[5, 6, END, 8, END, 9]]), END)
    assert found["position_ids"].tolist() == [[0, 1, 0, 1, 0, 1]]
    mask = found["attention_mask"]
    assert mask.shape == (1, 1, 6, 6) and mask.dtype is torch.bool
    assert torch.equal(mask[0, 0], torch.block_diag(*[torch.ones(2, 2).tril()] * 3).bool())


def test_a_model_without_positions_is_refused(model):
    check_positions(model)
    with pytest.raises(ConfigError, match=r"^workload.options.document_mask=True is not possible: allowed is false for Linear"):
        check_positions(nn.Linear(2, 2))
