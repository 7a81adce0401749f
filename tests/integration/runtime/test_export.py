"""From masked language modelling to a classifier: real ranks train, the commit becomes a folder, other ranks go on from it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import BertForMaskedLM, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

from ranks import Group, spec_of

from orchestrator.checkpoints.restore import export_tensors

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.0}


@pytest.fixture
def table(tmp_path):
    draw, path = random.Random(0), tmp_path / "texts.jsonl"
    kinds = {"animal": ("cat", "dog"), "plant": ("oak", "fern")}
    with path.open("w") as file:
        for number in range(300):
            label = draw.choice(sorted(kinds))
            file.write(json.dumps({"label": label, "text": f"the {draw.choice(kinds[label])} near road {number}"}) + "\n")
    return path


def job(folder, workers, table, name, entrypoint, model, **changes):
    data = {"source": "files", "path": str(table), "min_texts": 1, "vocab_size": 300, "length": 12}
    settings = {"workload__entrypoint": entrypoint, "data__name": name, "data__options": data, "model__options": model}
    spec = spec_of(folder / "store", resources__num_workers=workers, optimizer__lr=0.02, **settings | changes)
    return Group(folder, workers, spec, job_id=name)


def exported(group, folder, adapters=False):
    commit = group.log.chain()[0].key
    told = json.dumps({"id": group.job_id, "spec": group.spec, "commit": commit, "format": "hf", "adapters": adapters})
    command = [sys.executable, "-m", "orchestrator.runtime.export", str(folder)]
    return subprocess.run(command, input=told, text=True, capture_output=True, check=False)


def message(done):
    return json.loads(done.stdout)["message"]


@pytest.mark.slow
def test_an_encoder_is_pretrained_exported_and_fine_tuned(tmp_path, table):
    changes = {"training__max_steps": 6, "parallelism__zero_stage": 3}
    masked = job(tmp_path, 2, table, "masked", "workloads.masked_lm:MaskedLM", SHAPE, **changes).run()
    done = exported(masked, tmp_path / "encoder")
    assert done.returncode == 0, done.stderr
    assert message(done) == f"masked at step 6 is in {tmp_path / 'encoder'}"
    stored = export_tensors(masked.store, masked.log.load_manifest(masked.log.chain()[0]))
    read = dict(BertForMaskedLM.from_pretrained(tmp_path / "encoder").named_parameters())
    assert read.keys() == stored.keys()
    assert all(np.array_equal(read[name].detach().numpy(), value) for name, value in stored.items())
    model = {"pretrained": str(tmp_path / "encoder"), "dropout": 0.0}
    tuned = job(tmp_path, 1, table, "tuned", "workloads.text_classifier:TextClassifier", model, training__max_steps=30).run()
    before, after = (row["values"] for row in tuned.of("evaluated"))
    assert after["accuracy"] > 0.9 > before["accuracy"] and after["loss"] < before["loss"] / 2
    refused = exported(tuned, tmp_path / "classifier")
    assert refused.returncode == 2 and "it has no method export" in refused.stderr


@pytest.fixture
def decoder(tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=8, eos_token_id=0, **shape)).save_pretrained(tmp_path / "decoder")
    (tmp_path / "source").mkdir()
    for number in range(40):
        (tmp_path / "source" / f"m{number}.py").write_text(f"def function_{number}(argument):\n    return argument + {number}\n" * 4)
    return tmp_path / "decoder"


@pytest.mark.slow
def test_adapters_go_on_exactly_leave_the_stored_weights_and_are_merged_in_the_folder(tmp_path, decoder):
    settings = {
        "workload__entrypoint": "workloads.gpt:GPT", "model__options": {"pretrained": str(decoder), "lora_rank": 2}, "data__name": "source",
        "data__options": {"root": str(tmp_path / "source"), "vocab_size": 280, "block_size": 8}, "optimizer__lr": 0.02,
        "workload__options": {"new_tokens": 1}, "parallelism__zero_stage": 2,
    }  # fmt: skip
    group = Group(tmp_path, 1, spec_of(tmp_path / "store", **settings)).run()
    newest, half = group.log.chain()[:2]
    calm = export_tensors(group.store, group.log.load_manifest(newest))
    assert any(message["text"].endswith("of them trained") for message in group.of("phase"))
    again = Group(tmp_path, 1, group.spec).run([half.key])
    assert [again.history()[step] for step in (4, 5, 6)] == [group.history()[step] for step in (4, 5, 6)]
    resumed = export_tensors(again.store, again.log.load_manifest(again.log.chain()[0]))
    assert resumed.keys() == calm.keys() and all(np.array_equal(resumed[name], value) for name, value in calm.items())
    stored = dict(LlamaForCausalLM.from_pretrained(decoder).named_parameters())
    base = {name.replace(".base_layer", ""): value for name, value in calm.items() if "lora_" not in name}
    assert base.keys() == stored.keys() and all(np.array_equal(stored[name].detach().numpy(), value) for name, value in base.items())
    done = exported(again, tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    merged = dict(LlamaForCausalLM.from_pretrained(tmp_path / "merged").named_parameters())
    name = "model.layers.0.self_attn.q_proj"
    share = 8 * calm[f"{name}.lora_B.default.weight"] @ calm[f"{name}.lora_A.default.weight"]  # alpha 16, rank 2
    assert np.abs(share).max() > 1e-4
    assert np.allclose(merged[f"{name}.weight"].detach().numpy(), base[f"{name}.weight"] + share, atol=1e-6)
    folder = tmp_path / "adapters"
    folder.mkdir()
    done = exported(again, folder, adapters=True)
    assert done.returncode == 0, done.stderr
    assert message(done) == f"the adapters of job at step 6 are in {folder}"
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    tokens = torch.arange(8).view(1, -1)
    beside = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(decoder), folder).eval()
    whole = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(beside(input_ids=tokens).logits, whole(input_ids=tokens).logits, atol=1e-5)
