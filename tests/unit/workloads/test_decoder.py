"""Decoders: shapes and sizes, long contexts, initialisation, and folders of trained ones."""

from __future__ import annotations

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from orchestrator.config import load_job_spec
from orchestrator.errors import ConfigError, DataError
from orchestrator.runtime.initialise import Values
from workloads.chunked_loss import allow_chunks
from workloads.decoder import Architecture, decoder_of
from workloads.gpt import END_OF_TEXT, train_tokenizer
from workloads.model_folder import save_folder

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 4}
VOCABULARY, BLOCK = 300, 32


def built(**options):
    torch.manual_seed(0)
    return Architecture(**{**TINY, **options}).build(VOCABULARY, BLOCK).eval()


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("gpt-125m", 125e6), ("gpt-350m", 350e6), ("gpt-1b", 1.3e9), ("gpt-7b", 7e9), ("gpt-13b", 13e9), ("gpt-70b", 70e9),
    ],
)  # fmt: skip
def test_the_shipped_models_have_the_size_of_their_name(model, parameters):
    spec = load_job_spec(["workload=gpt", f"model={model}", "data=python-source-32k"])
    with torch.device("meta"):
        decoder = decoder_of(spec.model.options).build(spec.data.options["vocab_size"], spec.data.options["block_size"])
    assert {tensor.device.type for tensor in decoder.parameters()} == {"meta"}
    assert sum(tensor.numel() for tensor in decoder.parameters()) == pytest.approx(parameters, rel=0.04)
    assert decoder.config.max_position_embeddings == 2048 and decoder.config._attn_implementation == "sdpa"


def test_grouped_heads_share_their_keys_and_values():
    attention = built(num_key_value_heads=2).model.layers[0].self_attn
    assert attention.q_proj.weight.shape == (16, 16) and attention.k_proj.weight.shape == attention.v_proj.weight.shape == (8, 16)
    assert built().model.layers[0].self_attn.k_proj.weight.shape == (16, 16)


def test_the_embeddings_are_tied_only_if_asked():
    tied, own = built(), built(tie_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert own.lm_head.weight is not own.model.embed_tokens.weight


def test_depth_scaling_makes_the_projections_into_the_residual_stream_smaller_and_nothing_else():
    scaled, plain = dict(built().named_parameters()), dict(built(depth_scaled_init=False).named_parameters())
    residual = {name for name in scaled if "o_proj" in name or "down_proj" in name}
    assert len(residual) == 2 * TINY["num_layers"]
    for name, parameter in plain.items():
        assert torch.allclose(scaled[name], parameter / 2 if name in residual else parameter)  # sqrt(2 * 2 layers)


def rotation(position, **options):
    """cos of the rotary angles at a position: float[width of a head]."""
    model = built(**options)
    cos, _ = model.model.rotary_emb(torch.zeros(1, 1, 16), torch.tensor([[position]]))
    return cos[0, 0]


def test_linear_scaling_divides_positions_and_yarn_leaves_short_wavelengths():
    assert torch.allclose(rotation(20, rope_scaling=4.0), rotation(5), atol=1e-6)
    inverse = {kind: built(rope_scaling=4.0, rope_scaling_type=kind).model.rotary_emb.inv_freq for kind in ("linear", "yarn")}
    plain = built().model.rotary_emb.inv_freq
    assert torch.allclose(inverse["linear"], plain / 4)
    assert inverse["yarn"][-1] == pytest.approx(plain[-1].item() / 4, rel=1e-3)
    assert inverse["yarn"][0] > inverse["linear"][0]
    assert built(rope_theta=100.0).model.rotary_emb.inv_freq[-1] > plain[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "model.options.num_heads=5 is not possible: allowed is a number of heads of even width in hidden_size=16"),
        ({"num_key_value_heads": 3}, "model.options.num_key_value_heads=3 is not possible: allowed is 0 or a divisor of num_heads=4"),
        ({"num_key_value_heads": 8}, "model.options.num_key_value_heads=8"),
        ({"num_key_value_heads": -1}, "model.options.num_key_value_heads=-1"),
        ({"rope_theta": 0.0}, "model.options.rope_theta=0.0 is not possible: allowed is more than 0"),
        ({"rope_scaling": 0.5}, "model.options.rope_scaling=0.5 is not possible: allowed is 1 .* or more"),
        ({"rope_scaling_type": "ntk"}, "model.options.rope_scaling_type=ntk is not possible: allowed is linear, yarn, llama3"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_by_its_flag(options, message):
    with pytest.raises(ConfigError, match=message):
        decoder_of({**TINY, **options})


# from a folder


@pytest.fixture
def trained():
    torch.manual_seed(3)
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "eos_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, **shape))


@pytest.fixture
def folder(tmp_path, trained):
    """A trained model as transformers keeps it."""
    trained.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def from_folder(folder, **options):
    return decoder_of({"pretrained": str(folder), **options})


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_gives_back_its_weights_and_they_can_be_trained(folder, trained):
    torch.manual_seed(9)
    model = from_folder(folder).build(VOCABULARY, BLOCK)
    assert all(torch.equal(found, kept) for found, kept in zip(model.parameters(), trained.parameters(), strict=True))
    assert all(parameter.dtype is torch.float32 and parameter.requires_grad for parameter in model.parameters())
    tokens = torch.arange(12).view(1, -1)
    assert torch.allclose(model.eval()(input_ids=tokens).logits, trained.eval()(input_ids=tokens).logits, atol=1e-6)


def test_weights_in_several_files_and_in_bf16_are_read(tmp_path, trained):
    trained.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="10KB")
    assert not (tmp_path / "model.safetensors").exists()
    found = from_folder(tmp_path).build(VOCABULARY, BLOCK)
    assert found.lm_head.weight.dtype is torch.float32
    assert torch.equal(found.lm_head.weight, trained.lm_head.weight.float())
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(DataError, match=f"has no {lost.name}, which model.safetensors.index.json names"):
        from_folder(tmp_path)


def filled(decoder):
    with torch.device("meta"):
        model = decoder.build(VOCABULARY, BLOCK)
    Values(model, decoder.initialise, 0, torch.device("cpu"), torch.float32).fill(model)
    return model


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_is_read_module_by_module_into_the_same_model(tmp_path, kind, tied):
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
    torch.manual_seed(4)
    model_type = getattr(transformers, kind)
    config = model_type.config_class(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, tie_word_embeddings=tied, **shape)
    model_type(config).bfloat16().save_pretrained(tmp_path, max_shard_size="10KB")
    decoder = from_folder(tmp_path)
    found, whole = filled(decoder), decoder.build(VOCABULARY, BLOCK)
    assert type(found) is type(whole) and found.config.to_dict() == whole.config.to_dict()
    assert (found.lm_head.weight is found.model.embed_tokens.weight) == tied
    for tensors in ("named_parameters", "named_buffers"):
        for (name, tensor), (same, expected) in zip(getattr(found, tensors)(), getattr(whole, tensors)(), strict=True):
            assert name == same and tensor.dtype is torch.float32 and torch.equal(tensor, expected)
    tokens = torch.arange(12).view(1, -1)
    assert torch.equal(found.eval()(input_ids=tokens).logits, whole.eval()(input_ids=tokens).logits)
    assert allow_chunks(decoder_outline(decoder)) and from_folder(tmp_path, lora_rank=2).initialise is None


def decoder_outline(decoder):
    with torch.device("meta"):
        return decoder.build(VOCABULARY, BLOCK)


def test_a_folder_whose_tensors_are_not_the_models_is_left_to_transformers(folder, trained):
    assert from_folder(folder).initialise is not None
    tensors = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    short, more = {name: tensors[name] for name in list(tensors)[1:]}, {**tensors, "another": torch.zeros(1)}
    inner = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    for stored in (short, more, inner, {**tensors, "model.norm.weight": torch.ones(17)}):
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        assert from_folder(folder).initialise is None
    transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=VOCABULARY)).save_pretrained(folder)
    assert from_folder(folder).initialise is None, "its names are known, but not that they are all there is to it"


def test_its_tokenizer_comes_with_the_token_that_ends_a_text(folder):
    assert from_folder(folder).tokenizer() is None
    content = train_tokenizer(["x = 1\n"], VOCABULARY).to_str()
    (folder / "tokenizer.json").write_text(content)
    assert from_folder(folder).tokenizer() == (content.encode(), 0)
    assert END_OF_TEXT in content
    edit(folder, eos_token_id=[2, 5])
    assert from_folder(folder).tokenizer() == (content.encode(), 2)
    edit(folder, eos_token_id=None)
    with pytest.raises(DataError, match=r"config.json has no eos_token_id"):
        from_folder(folder).tokenizer()


def test_a_folder_that_lacks_something_is_refused_by_the_name_of_the_file(folder, tmp_path):
    with pytest.raises(DataError, match=r"model.options.pretrained=/nowhere is not a folder"):
        from_folder("/nowhere")
    (folder / "model.safetensors").rename(folder / "away")
    with pytest.raises(DataError, match=r"has no model.safetensors \(or model.safetensors.index.json\)\.$"):
        from_folder(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(DataError, match=r"pytorch_model.bin is refused: it is a pickle, and loading a pickle can run any code"):
        from_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"has no config.json"):
        from_folder(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, r"names code of its own \(auto_map\), which is not run"),
        ({"model_type": "no-such-model"}, r"config.json is no model that transformers knows"),
        ({"num_hidden_layers": 2}, r"the weights lack model.layers.1.*\(9 in all\)"),
        ({"hidden_size": 32}, r"the weights have another shape for lm_head.weight, .*\(12 in all\)"),
    ],
)
def test_a_config_that_its_weights_do_not_fit_is_refused(folder, values, message):
    edit(folder, **values)
    with pytest.raises(DataError, match=message):
        from_folder(folder).build(VOCABULARY, BLOCK)


def test_what_the_model_cannot_take_is_refused(folder):
    with pytest.raises(DataError, match=r"the tokenizer has 301 tokens, the model of model.options.pretrained only 300"):
        from_folder(folder).build(VOCABULARY + 1, BLOCK)
    with pytest.raises(ConfigError, match=r"data.options.block_size=65 is not possible: allowed is at most 64"):
        from_folder(folder).build(VOCABULARY, 65)


def scaled(folder, kind, factor=4.0):
    return from_folder(folder, rope_scaling=factor, rope_scaling_type=kind).build(VOCABULARY, round(64 * factor)).eval()


@pytest.mark.parametrize(
    ("kind", "slower"),  # by how much each of the four wavelengths, 6.3, 63, 630 and 6,300 positions, is stretched; the model knew 64
    [("linear", [4, 4, 4, 4]), ("yarn", [1, 1.6, 4, 4]), ("llama3", [1, 3.9, 4, 4])],
)
def test_a_folders_context_is_made_longer_and_an_export_keeps_it(folder, tmp_path, kind, slower):
    plain, longer = from_folder(folder).build(VOCABULARY, 64), scaled(folder, kind)
    stretched = plain.model.rotary_emb.inv_freq / longer.model.rotary_emb.inv_freq
    assert stretched.tolist() == pytest.approx(slower, rel=0.02)
    tokens = torch.arange(256).view(1, -1) % VOCABULARY
    logits = longer(input_ids=tokens).logits
    cos, sin = longer.model.rotary_emb(torch.zeros(1), torch.arange(256).view(1, -1))
    assert logits.isfinite().all() and cos.isfinite().all() and sin.isfinite().all()
    assert len(torch.cat([cos[0], sin[0]], -1).unique(dim=0)) == 256  # every position has angles of its own
    save_folder(longer, tmp_path / "longer", train_tokenizer(["x = 1\n"], VOCABULARY))
    again = LlamaForCausalLM.from_pretrained(tmp_path / "longer").eval()
    assert (again.config.max_position_embeddings, again.config.rope_parameters["rope_type"]) == (256, kind)
    assert torch.equal(again(input_ids=tokens).logits, logits)
    with pytest.raises(ConfigError, match=r"block_size=257 is not possible: allowed is at most 256.*model.options.rope_scaling"):
        from_folder(folder, rope_scaling=4.0, rope_scaling_type=kind).build(VOCABULARY, 257)


def test_a_scaling_that_a_folder_has_is_replaced_where_its_original_length_is_told(folder, tmp_path):
    save_folder(scaled(folder, "yarn"), tmp_path / "yarn", train_tokenizer(["x = 1\n"], VOCABULARY))
    direct, twice = scaled(folder, "llama3", 8.0), scaled(tmp_path / "yarn", "llama3", 8.0)
    assert torch.equal(twice.model.rotary_emb.inv_freq, direct.model.rotary_emb.inv_freq)
    assert twice.config.max_position_embeddings == 512
    save_folder(scaled(folder, "linear"), tmp_path / "linear", train_tokenizer(["x = 1\n"], VOCABULARY))
    with pytest.raises(ConfigError, match=r"rope_scaling=8.0 is not possible: allowed is 1, because .* scales its positions by 'linear'"):
        scaled(tmp_path / "linear", "yarn", 8.0)


def test_a_scaling_that_cannot_be_is_refused(folder, tmp_path):
    for kind, message in (("yarm", "Did you mean 'yarn'"), ("dynamic", "allowed is linear, yarn"), ("llama", "Did you mean 'llama3'")):
        with pytest.raises(ConfigError, match=rf"model.options.rope_scaling_type={kind} is not possible.*{message}"):
            from_folder(folder, rope_scaling=2.0, rope_scaling_type=kind)
    with pytest.raises(ConfigError, match=r"model.options.rope_scaling=0.5 is not possible"):
        from_folder(folder, rope_scaling=0.5)
    GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match=r"rope_scaling=2.0 .* has no rotary positions that all layers share"):
        scaled(tmp_path / "gpt2", "yarn", 2.0)


def test_a_shape_beside_a_folder_is_refused(folder):
    with pytest.raises(ConfigError, match=r"model.options.hidden_size is no setting. Known here: lora_rank, .*pretrained"):
        from_folder(folder, hidden_size=16)
