"""Text classification and masked language modelling on a table of a few hundred texts: data, models, learning, and the way from one to
the other through a folder."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from transformers import (
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from orchestrator.config import load_job_spec
from orchestrator.errors import ConfigError, DataError
from workloads.encoder import BertOverMasked, encoder_of
from workloads.masked_lm import MaskedLM, _draws_from, choose
from workloads.text_classifier import TextClassifier

sys.path.append(str(Path(__file__).parent))
from kept import Kept, evaluated, spec_of, train

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
SUBJECTS = {"animal": ("cat", "dog", "cow"), "plant": ("oak", "fern", "moss"), "stone": ("flint", "slate", "marble")}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Sentences whose class is their subject's; every fifth has none."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("table") / "t.jsonl"
    rows = []
    for number in range(600):
        label = draw.choice(sorted(SUBJECTS))
        place = draw.choice(("lake", "hill", "road"))
        text = f"{draw.choice(('the', 'a', 'one'))} {draw.choice(SUBJECTS[label])} near the {place} {number}"
        rows.append({"text": text, "label": label if number % 5 else None})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def workload(cls, table, model=TINY, options=(), **data):
    entrypoint = f"{cls.__module__}:{cls.__name__}"
    data = {"source": "files", "path": str(table), "min_texts": 1, "vocab_size": 320, "length": 14, **data}
    return cls(spec_of(entrypoint, model, data, options))


def prepared_by(subject):
    kept = Kept()
    subject.prepare(kept)
    return kept


@pytest.fixture(scope="module")
def labelled(table):
    return prepared_by(workload(TextClassifier, table))


@pytest.fixture(scope="module")
def unlabelled(table):
    return prepared_by(workload(MaskedLM, table))


def test_the_classifier_reads_texts_with_a_class_and_bert_reads_all(labelled, unlabelled):
    assert json.loads(labelled.file("classes.json")) == ["animal", "plant", "stone"]
    sizes = [(kept.num_samples("train"), kept.num_samples("validation")) for kept in (labelled, unlabelled)]
    assert sum(sizes[0]) == 480 and sum(sizes[1]) == 600
    known = {row.tobytes() for row in unlabelled.records("train")["tokens"]}
    assert {row.tobytes() for row in labelled.records("train")["tokens"]} < known  # one tokenizer, one split
    assert not {row.tobytes() for row in labelled.records("validation")["tokens"]} & known


def test_preparing_twice_gives_the_same_bytes(table, labelled):
    again = prepared_by(workload(TextClassifier, table))
    assert again.files == labelled.files
    assert all(again.records(split).tobytes() == labelled.records(split).tobytes() for split in ("train", "validation"))


def test_few_labels_are_the_same_number_of_each_class_and_leave_the_rest_as_it_was(table, labelled):
    subject = workload(TextClassifier, table, labelled_per_class=7)
    few = prepared_by(subject)
    assert np.bincount(few.records("train")["label"]).tolist() == [7, 7, 7]
    assert few.records("validation").tobytes() == labelled.records("validation").tobytes() and few.files == labelled.files
    assert subject.source_fingerprint() != workload(TextClassifier, table).source_fingerprint()


def test_the_classifier_learns_and_its_result_does_not_depend_on_padding(table, labelled):
    subject = workload(TextClassifier, table)
    torch.manual_seed(0)
    model = subject.build_model(labelled)
    before = evaluated(subject, model, labelled)
    assert before == pytest.approx(evaluated(subject, model, labelled, batch_size=1), abs=1e-6)
    train(subject, model, labelled, steps=80, batch_size=32)
    after = evaluated(subject, model, labelled)
    assert before["accuracy"] < 0.6 < 0.9 < after["accuracy"] and after["loss"] < before["loss"] / 2
    sums = dict.fromkeys(("bin_count", "bin_right", "bin_confidence"), np.zeros(15)) | {"confusion_matrix": np.eye(3)}
    files = subject.report(sums, labelled)
    assert [row["name"] for row in json.loads(files["per_class.json"])] == ["animal", "plant", "stone"]


def test_bert_learns_and_its_evaluation_does_not_depend_on_the_batch(table, unlabelled):
    subject = workload(MaskedLM, table)
    torch.manual_seed(0)
    model = subject.build_model(unlabelled)
    before = evaluated(subject, model, unlabelled)
    train(subject, model, unlabelled, steps=60, batch_size=64)
    after = evaluated(subject, model, unlabelled)
    assert after["loss"] < before["loss"] - 1 and after["accuracy"] > before["accuracy"] + 0.1
    assert after == pytest.approx(evaluated(subject, model, unlabelled, batch_size=7), abs=1e-5)
    state = torch.get_rng_state()
    evaluated(subject, model, unlabelled)
    assert torch.equal(state, torch.get_rng_state())
    assert "[MASK]" not in workload(MaskedLM, table, options={"text": "the [MASK] near the [MASK]"}).sample(model, unlabelled)


def test_the_loss_is_the_mean_over_the_texts(table, unlabelled):
    subject = workload(MaskedLM, table, options={"mask_share": 0.999})  # then every token is chosen, whatever is drawn
    model = subject.build_model(unlabelled)
    subject._predict = lambda model, tokens, mask, draws: MaskedLM._predict(subject, model, tokens, mask, torch.full_like(draws, 0.5))
    whole = subject.loss(model, unlabelled.batch(count=6))
    single = [subject.loss(model, unlabelled.batch(first=number, count=1)).item() for number in range(6)]
    assert whole.item() == pytest.approx(sum(single) / 6, rel=1e-5)


def test_the_same_share_of_each_text_is_chosen_and_never_what_is_no_text():
    allowed = torch.arange(40).expand(3, 40) < torch.tensor([[40], [20], [1]])
    allowed = allowed.clone()
    allowed[:, 0] = False
    chosen = choose(torch.rand(3, 40), allowed, 0.15)
    assert chosen.sum(1).tolist() == [6, 3, 0] and not (chosen & ~allowed).any()
    draws = _draws_from(torch.randint(4, 300, (400, 30), generator=torch.Generator().manual_seed(0)))
    assert draws.min() >= 0 and draws.max() < 1
    assert draws.mean(dim=(1, 2)).tolist() == pytest.approx([0.5] * 3, abs=0.02)
    assert np.abs(np.corrcoef(draws.reshape(3, -1).numpy()) - np.eye(3)).max() < 0.05


def test_masked_tokens_are_hidden_as_devlin_et_al_say(table, unlabelled):
    subject, seen = workload(MaskedLM, table, options={"mask_share": 0.5}), {}
    subject.build_model(unlabelled)

    def model(input_ids, attention_mask, chosen):
        seen.update(ids=input_ids, chosen=chosen)
        return torch.zeros(int(chosen.sum()), 320)

    batch = unlabelled.batch()
    subject.loss(model, batch)
    tokens, chosen = batch["tokens"][:, : seen["ids"].shape[1]], seen["chosen"]
    assert torch.equal(seen["ids"][~chosen], tokens[~chosen])
    masked = (seen["ids"] == 3)[chosen].double().mean().item()
    same = (seen["ids"] == tokens)[chosen].double().mean().item()
    assert masked == pytest.approx(0.8, abs=0.04) and same == pytest.approx(0.1, abs=0.03)


# through a folder


@pytest.fixture(scope="module")
def folder(table, unlabelled, tmp_path_factory):
    subject, path = workload(MaskedLM, table), tmp_path_factory.mktemp("exported")
    torch.manual_seed(5)
    subject.export(subject.build_model(unlabelled), unlabelled, path)
    return path


def test_bert_is_exported_as_transformers_reads_it_and_is_trained_further(table, folder, unlabelled):
    theirs = BertForMaskedLM.from_pretrained(folder).eval()
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    subject = workload(MaskedLM, table, model={"pretrained": str(folder), "dropout": 0.0})
    kept = prepared_by(subject)
    assert kept.files == unlabelled.files
    ours = subject.build_model(kept).eval()
    tokens = kept.batch(count=3)["tokens"]
    mask, everywhere = (tokens != 0).long(), tokens != 0
    expected = theirs(input_ids=tokens, attention_mask=mask).logits[everywhere]
    assert torch.allclose(ours(input_ids=tokens, attention_mask=mask, chosen=everywhere), expected, atol=1e-5)


def test_a_classifier_begins_with_the_encoder_of_the_folder(table, folder):
    subject = workload(TextClassifier, table, model={"pretrained": str(folder), "dropout": 0.0})
    kept = prepared_by(subject)
    model = subject.build_model(kept)
    stored = dict(BertForMaskedLM.from_pretrained(folder).bert.named_parameters())
    assert all(torch.equal(parameter, stored[name]) for name, parameter in model.encoder.named_parameters())
    subject.loss(model, kept.batch(count=4)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


SHAPE = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
OTHERS = {
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SHAPE, max_position_embeddings=16)),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**SHAPE, embedding_size=16)),
    "distilbert": lambda: DistilBertForMaskedLM(DistilBertConfig(vocab_size=320, dim=16, hidden_dim=32, n_layers=1, n_heads=2)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_encoders_are_classifiers_too(table, folder, tmp_path, kind):
    OTHERS[kind]().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    subject = workload(TextClassifier, table, model={"pretrained": str(tmp_path)})
    kept = prepared_by(subject)
    model = subject.build_model(kept)
    subject.loss(model, kept.batch(count=4)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    if kind == "roberta":
        with pytest.raises(ConfigError, match=r"data.options.length=15 is not possible: allowed is at most 14"):
            workload(TextClassifier, table, model={"pretrained": str(tmp_path)}, length=15).build_model(kept)
    with pytest.raises(ConfigError, match=rf"model.options.pretrained=.* \({kind}\) is not possible: allowed is a model of the type bert"):
        workload(MaskedLM, table, model={"pretrained": str(tmp_path)}).build_model(kept)


def test_a_folder_that_is_no_encoder_or_has_no_tokens_is_refused(folder, tmp_path):
    decoder = LlamaForCausalLM(LlamaConfig(**SHAPE))
    decoder.save_pretrained(tmp_path / "llama")
    chosen = encoder_of({"pretrained": str(tmp_path / "llama")})
    with pytest.raises(DataError, match=r"has no tokenizer.json: the encoder's tokens are not known"):
        chosen.tokenizer()
    with pytest.raises(ConfigError, match=r"\(llama\) is not possible: allowed is a model of the type bert, roberta, distilbert, electra"):
        chosen.classifier(320, 14, 3)
    with pytest.raises(DataError, match=r"the tokenizer has 321 tokens, the model of model.options.pretrained only 320"):
        encoder_of({"pretrained": str(folder)}).classifier(321, 14, 3)


@pytest.mark.parametrize(("model", "parameters"), [("bert-tiny", 4.4e6), ("bert-base", 109.5e6), ("bert-large", 335.1e6)])
def test_the_shipped_models_have_the_published_size(model, parameters):
    spec = load_job_spec(["workload=bert", f"model={model}"])
    with torch.device("meta"):
        built = encoder_of(spec.model.options).masked_lm(30_522, 512)
    assert isinstance(built, BertOverMasked)
    assert sum(parameter.numel() for parameter in built.parameters()) == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (TextClassifier, {"model": {**TINY, "num_heads": 3}}, "model.options.num_heads=3 is not possible: allowed is a divisor"),
        (TextClassifier, {"model": {**TINY, "dropout": 1.0}}, "model.options.dropout=1.0"),
        (TextClassifier, {"length": 2}, "data.options.length=2 is not possible: allowed is at least 3"),
        (TextClassifier, {"vocab_size": 100}, "data.options.vocab_size=100 is not possible: allowed is 261 to 65536"),
        (TextClassifier, {"labelled_per_class": -1}, "data.options.labelled_per_class=-1"),
        (TextClassifier, {"options": {"label_smoothing": 1.0}}, "workload.options.label_smoothing=1.0"),
        (MaskedLM, {"options": {"mask_share": 0.0}}, "workload.options.mask_share=0.0 is not possible: allowed is between 0 and 1"),
        (MaskedLM, {"options": {"text": "x"}}, "workload.options.text=x is not possible"),
        (MaskedLM, {"model": {"layers": 1}}, r"model.options.layers is no setting.*Did you mean 'num_layers'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_its_flag(table, cls, arguments, message):
    with pytest.raises(ConfigError, match=message):
        workload(cls, table, **arguments)
