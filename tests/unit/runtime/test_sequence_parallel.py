"""How a batch is cut, and what is refused before a rank has trained."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from orchestrator.errors import ConfigError, WorkloadError  # noqa: E402
from orchestrator.layout import Layout  # noqa: E402
from orchestrator.runtime.sequence_parallel import SequenceShare, check_model, fields_of  # noqa: E402

SHAPE = {"vocab_size": 13, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}


def layout(world=4, size=2, together=1):
    sizes = {"sequence_parallel_size": size, "tensor_parallel_size": together}
    return Layout(world_size=world, micro_batch_size=1, gradient_accumulation_steps=1, zero_stage=1, **sizes)


def llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))


def test_each_rank_gets_its_positions_of_what_runs_along_the_sequence():
    tokens, weights, label = torch.arange(18).view(2, 9), torch.arange(32.0).view(2, 8, 2), torch.tensor([1, 0])
    batch = {"tokens": tokens, "weights": weights, "label": label}
    for rank in range(4):  # ranks 0 and 1 share a sequence, 2 and 3 another
        first = 4 * (rank % 2)
        cut = SequenceShare(layout(), {"tokens": 1, "weights": 0}, rank).cut(batch)
        assert torch.equal(cut["tokens"], tokens[:, first : first + 5])
        assert torch.equal(cut["weights"], weights[:, first : first + 4])
        assert cut["label"] is label
        assert all(value.is_contiguous() for value in cut.values())


def test_without_sequence_parallelism_nothing_is_cut():
    batch = {"tokens": torch.arange(18).view(2, 9)}
    assert torch.equal(SequenceShare(layout(size=1), {}, 3).cut(batch)["tokens"], batch["tokens"])


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(WorkloadError, match=r"^sequence_fields names words, but a batch has the fields tokens\.$"):
        SequenceShare(layout(), {"words": 0}, 0).cut({"tokens": torch.zeros(1, 8)})
    with pytest.raises(ConfigError, match=r"size=2 .* allowed is a divisor of the 7 positions of a sample's field 'tokens'\.$"):
        SequenceShare(layout(), {"tokens": 1}, 0).cut({"tokens": torch.zeros(1, 8)})


def test_a_workload_must_say_what_can_be_cut():
    class Plain:
        pass

    assert fields_of(Plain(), layout(size=1)) == {}
    with pytest.raises(ConfigError, match=r"sequence_parallel_size=2 is not possible: allowed is 1, because Plain has no sequence_fields"):
        fields_of(Plain(), layout())


@pytest.mark.parametrize(
    ("build", "given", "said"),
    [
        (llama, {"attention_mask": torch.tensor([[0, 1, 1, 1]])}, r"\w+ masks more than causality does"),
        (lambda: MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=7)), {}, r"\w+ masks more than causality"),
        (llama, {"position_ids": torch.tensor([[0, 1, 0, 1]])}, "the workload gives the model position_ids"),
    ],
    ids=["padding", "window", "packed texts"],
)
def test_what_one_rank_cannot_know_of_the_whole_is_refused_before_anything_is_exchanged(build, given, said):
    model = build()
    SequenceShare(layout(), {}, 0).adapt(model)
    with pytest.raises(ConfigError, match=rf"size=2 is not possible: allowed is 1, because {said}"):
        model(input_ids=torch.tensor([[1, 2, 3, 4]]), **given)


@pytest.mark.parametrize("model", [llama(), llama(num_key_value_heads=1), GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=4, n_layer=1))])
def test_a_decoder_with_plain_attention_is_taken(model):
    check_model(model, layout())


@pytest.mark.parametrize(
    ("build", "place", "said"),
    [
        (lambda: torch.nn.Linear(2, 2), layout(), "for the model Linear: allowed is 1, or a transformers model"),
        (lambda: T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2)), layout(), "for the model T5"),
        (lambda: llama(num_attention_heads=1), layout(), "a divisor of the model's 1 attention heads.$"),
        (llama, layout(size=4, together=2), "4 attention heads for each of parallelism.tensor_parallel_size=2 ranks.$"),
        (lambda: llama(num_key_value_heads=1), layout(together=2), "4 attention heads for each of"),
        (lambda: llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), layout(), "of the type dynamic depend"),
        (lambda: llama(attention_chunk_size=4), layout(), r"not full attention \(chunked\)"),
        (lambda: llama(layer_types=["sliding_attention"]), layout(), r"not full attention \(sliding_attention\)"),
    ],
)
def test_a_model_whose_slices_are_not_its_whole_is_refused(build, place, said):
    with pytest.raises(ConfigError, match=rf"^parallelism\.sequence_parallel_size={place.sequence_parallel_size} is not possible.*{said}"):
        check_model(build(), place)
