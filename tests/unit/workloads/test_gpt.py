"""The language model's recipe and model, on a folder of a few files."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.errors import ConfigError, DataError
from orchestrator.layout import Layout
from orchestrator.runtime.sequence_parallel import SequenceShare
from orchestrator.spec import DataSpec, JobSpec, ModelSpec, TrainingSpec, WorkloadSpec
from workloads.gpt import END_OF_TEXT, GPT, Tokenizer, pack, train_tokenizer

sys.path.append(str(Path(__file__).parent))

import kept

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for number in range(40):
        path = folder / f"package{number % 3}" / f"module{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"def function_{number}(argument):\n    return argument + {number}\n" * 20)
    (folder / "latin.py").write_bytes(b"# caf\xe9\n")
    (folder / "notes.txt").write_text("not Python")
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "other.py").write_text("not ours")
    return folder


def workload(root, model=TINY, options=(), **data):
    data = {"root": str(root), "vocab_size": 300, "block_size": 16, "validation_share": 0.2, **data}
    return GPT(
        JobSpec(
            workload=WorkloadSpec(name="gpt", entrypoint="workloads.gpt:GPT", options=dict(options)),
            model=ModelSpec(name="tiny", options=model),
            data=DataSpec(name="tiny-source", options=data),
            training=TrainingSpec(max_steps=1, global_batch_size=1, micro_batch_size=1),
        )
    )


class Kept(kept.Kept):
    def batch(self, split="train", count=4):
        return {"tokens": torch.from_numpy(self.records(split)["tokens"][:count].astype(np.int64))}


@pytest.fixture(scope="module")
def prepared(root):
    kept = Kept()
    workload(root).prepare(kept)
    return kept


def test_the_blocks_say_what_the_files_say(root, prepared):
    tokenizer = Tokenizer.from_str(prepared.file("tokenizer.json").decode())
    records = prepared.records("train")
    assert records.dtype == np.dtype([("tokens", "<u2", (17,))])
    text = tokenizer.decode(records["tokens"].reshape(-1).tolist(), skip_special_tokens=False)
    documents = text.split(END_OF_TEXT)[1:]
    sources = {path.read_text() for path in root.glob("package*/*.py")}
    assert len(documents) > 20
    assert set(documents[:-1]) < sources  # the last one may be cut short
    assert "not ours" not in text and "not Python" not in text


def test_no_file_is_in_both_splits(prepared):
    tokenizer = Tokenizer.from_str(prepared.file("tokenizer.json").decode())
    texts = [tokenizer.decode(prepared.records(split)["tokens"].reshape(-1).tolist()) for split in ("train", "validation")]
    names = [{line for line in text.splitlines() if line.startswith("def ") and line.endswith(":")} for text in texts]
    assert names[0] and names[1] and not names[0] & names[1]


def test_preparing_twice_gives_the_same_bytes(root, prepared):
    again = Kept()
    workload(root).prepare(again)
    assert again.files == prepared.files
    for split in ("train", "validation"):
        assert again.records(split).tobytes() == prepared.records(split).tobytes()


def test_packing_drops_only_the_tail():
    texts = ["x = 1\n" * 50, "y = 2\n", ""]
    tokenizer = train_tokenizer(texts, 300)
    blocks = np.concatenate(list(pack(tokenizer, texts, 8, 0, files_at_once=1)))["tokens"].reshape(-1)
    whole = np.concatenate(list(pack(tokenizer, texts, 0, 0)))["tokens"].reshape(-1)
    assert np.array_equal(blocks, whole[: len(blocks)]) and 0 <= len(whole) - len(blocks) < 9


def test_every_text_can_be_encoded_and_read_back():
    tokenizer = train_tokenizer(["x = 1\n"], 300)
    text = "π = 'naïve' \t\U0001f40d\r\n\n  "
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_fingerprint_changes_with_recipe_paths_and_contents(root, tmp_path):
    base = workload(root).source_fingerprint()
    assert workload(root).source_fingerprint() == base
    others = [workload(root, vocab_size=310).source_fingerprint(), workload(root, block_size=8).source_fingerprint()]
    folder = tmp_path / "copy"
    for path in sorted(root.rglob("*.py")):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert workload(folder).source_fingerprint() == base  # the same files elsewhere
    (folder / "latin.py").rename(folder / "roman.py")
    others.append(workload(folder).source_fingerprint())
    (folder / "roman.py").write_bytes(b"# edited\n")
    others.append(workload(folder).source_fingerprint())
    assert len({base, *others}) == 5


def test_model_options_do_not_touch_the_data(root):
    assert workload(root, model={**TINY, "num_layers": 2}).source_fingerprint() == workload(root).source_fingerprint()


def test_before_training_the_loss_is_that_of_a_guess_and_a_few_steps_lower_it(root, prepared):
    subject = workload(root)
    torch.manual_seed(0)
    model = subject.build_model(prepared)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = subject.loss(model, prepared.batch(count=8))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    vocab_size = model.config.vocab_size
    assert losses[0] == pytest.approx(math.log(vocab_size), rel=0.05)
    assert losses[-1] < 0.8 * losses[0]


def test_the_embeddings_are_tied_and_the_seed_decides_the_weights(root, prepared):
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(workload(root).build_model(prepared))
    assert models[0].lm_head.weight is models[0].model.embed_tokens.weight
    states = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_the_sums_of_parts_give_the_figures_of_the_whole(root, prepared):
    subject = workload(root)
    model = subject.build_model(prepared)
    with torch.no_grad():
        whole = subject.evaluate(model, prepared.batch(count=5))
        parts = [subject.evaluate(model, {"tokens": piece}) for piece in prepared.batch(count=5)["tokens"].split(2)]
        loss = subject.loss(model, prepared.batch(count=5)).item()
    sums = {name: sum(part[name] for part in parts).numpy() for name in whole}
    with torch.no_grad():
        logits = model(input_ids=prepared.batch(count=5)["tokens"][:, :-1]).logits
    assert sums["right"] == (logits.argmax(-1) == prepared.batch(count=5)["tokens"][:, 1:]).sum()
    assert sums["tokens"] == 5 * 16 and whole["loss_sum"].dtype is torch.float64
    figures = subject.metrics(sums)
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert sums["right"] == whole["right"] and figures["accuracy"] == sums["right"] / 80
    assert subject.tokens_per_sample == 16


def test_with_a_document_mask_the_loss_of_a_text_is_that_of_the_text_alone(root, prepared):
    subject = workload(root, options={"document_mask": True})
    model = subject.build_model(prepared)
    end = Tokenizer.from_str(prepared.file("tokenizer.json").decode()).token_to_id(END_OF_TEXT)
    texts = [[end, 40, 41, 42], [end, 50, 51, 52]]
    with torch.no_grad():
        apart = sum(subject.evaluate(model, {"tokens": torch.tensor([[*text, end]])})["loss_sum"] for text in texts)
        together = subject.evaluate(model, {"tokens": torch.tensor([[*texts[0], *texts[1], end]])})["loss_sum"]
    assert together.item() == pytest.approx(apart.item(), rel=1e-6)


class Bigram(torch.nn.Module):
    """Its guess depends on one token only, so slices need no attention."""

    def __init__(self, vocab_size):
        super().__init__()
        self.table = torch.nn.Embedding(vocab_size, vocab_size)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.table(input_ids))


def test_slices_of_sequences_say_together_what_the_whole_says(root, prepared):
    subject, model, batch = workload(root), Bigram(300), prepared.batch(count=5)
    layout = Layout(world_size=4, micro_batch_size=5, gradient_accumulation_steps=1, zero_stage=0, sequence_parallel_size=4)
    slices = [SequenceShare(layout, subject.sequence_fields, rank).cut(batch) for rank in range(4)]
    losses = [subject.loss(model, part).item() for part in slices]
    assert sum(losses) / 4 == pytest.approx(subject.loss(model, batch).item(), rel=1e-6)
    assert max(losses) - min(losses) > 1e-3
    for name, value in subject.evaluate(model, batch).items():
        assert sum(subject.evaluate(model, part)[name].item() for part in slices) == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_sample_continues_the_prompt_repeatably_and_leaves_the_model_as_it_was(root, prepared, temperature):
    options = {"prompt": "def f", "new_tokens": 30, "temperature": temperature}
    subject = workload(root, options=options)
    torch.manual_seed(0)
    model = subject.build_model(prepared).train()
    first = subject.sample(model, prepared)
    torch.manual_seed(99)
    assert subject.sample(model, prepared) == first
    assert first.startswith("def f") and len(first) > len("def f") and END_OF_TEXT not in first
    assert model.training


@pytest.fixture
def trained(tmp_path):
    """A model that was trained before, with another tokenizer of 280 tokens; texts end with its token 7."""
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "eos_token_id": 7}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=280, hidden_size=16, intermediate_size=32, **shape))
    model.save_pretrained(tmp_path / "trained")
    (tmp_path / "trained" / "tokenizer.json").write_text(train_tokenizer(["class Other:\n    pass\n"] * 9, 280).to_str())
    return tmp_path / "trained"


def test_a_pretrained_model_brings_its_weights_and_its_tokenizer(root, trained):
    subject, kept = workload(root, model={"pretrained": str(trained)}), Kept()
    subject.prepare(kept)
    assert kept.file("tokenizer.json") == (trained / "tokenizer.json").read_bytes()
    stream = kept.records("train")["tokens"].reshape(-1)
    assert stream[0] == 7 and 0 not in stream
    stored = LlamaForCausalLM.from_pretrained(trained)
    model = subject.build_model(kept)
    assert torch.equal(model.lm_head.weight, stored.lm_head.weight)
    subject.loss(model, kept.batch()).backward()
    assert model.lm_head.weight.grad.abs().sum() > 0
    assert subject.sample(model, kept).startswith("def ")


def test_the_tokenizer_of_a_pretrained_model_is_part_of_the_data(root, trained):
    def fingerprint(model):
        return workload(root, model=model).source_fingerprint()

    first = fingerprint({"pretrained": str(trained)})
    text = (trained / "tokenizer.json").read_text()
    (trained / "tokenizer.json").write_text(train_tokenizer(["x = 1\n"], 270).to_str())
    second = fingerprint({"pretrained": str(trained)})
    (trained / "tokenizer.json").write_text(text)
    assert fingerprint({"pretrained": str(trained)}) == first
    (trained / "tokenizer.json").unlink()
    assert fingerprint({"pretrained": str(trained)}) == fingerprint(TINY)  # then the data set trains its own
    assert len({first, second, fingerprint(TINY)}) == 3


def test_many_tokens_take_four_bytes():
    tokenizer = train_tokenizer(["x = 1\n"], 300)
    tokenizer.add_tokens([f"<{number}>" for number in range(66_000)])
    records = np.concatenate(list(pack(tokenizer, ["<65999>x = 1\n"], 1, 0)))
    assert records.dtype["tokens"].base == np.uint32 and records["tokens"].max() == tokenizer.token_to_id("<65999>") > 65_535


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_siz": 300}, r"data.options.vocab_siz is no setting.*Did you mean 'vocab_size'"),
        ({"vocab_size": 70_000}, "data.options.vocab_size=70000 is not possible: allowed is 257 to 65536"),
        ({"block_size": 0}, "data.options.block_size=0"),
        ({"validation_share": 1.0}, r"data.options.validation_share=1.0"),
        ({"model": {"pretrained": "/x", "num_layers": 3}}, "model.options.num_layers is no setting. Known here: lora_rank, .*pretrained"),
        ({"model": {"num_heads": 5}}, "model.options.num_heads=5"),
        ({"model": {"layers": 3}}, r"model.options.layers is no setting.*Did you mean 'num_layers'"),
        ({"options": {"prompt": ""}}, "workload.options.prompt=''"),
        ({"options": {"temperature": -1}}, "workload.options.temperature=-1"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_flag(root, arguments, message):
    with pytest.raises(ConfigError, match=message):
        workload(root, **arguments)


def test_a_root_without_python_files_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no Python files"):
        workload(tmp_path).source_fingerprint()
    with pytest.raises(DataError, match=r"data.options.root=.*/nowhere is not a folder"):
        workload(tmp_path / "nowhere").source_fingerprint()
