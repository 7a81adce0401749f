"""Docstrings from functions: what is read, the model's sizes, learning."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from transformers import T5ForConditionalGeneration

from orchestrator.config import load_job_spec
from orchestrator.errors import ConfigError, DataError
from workloads.seq2seq import Architecture, Seq2Seq, functions

sys.path.append(str(Path(__file__).parent))
from kept import Kept, evaluated, spec_of, train

TINY = {"hidden_size": 32, "head_size": 16, "intermediate_size": 64, "num_layers": 1, "num_heads": 2}
VERBS = {"open": "Begin to use the", "close": "Leave alone the", "count": "Say how many are in the"}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What a function's name says stands in its docstring in other words."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(120):
        verb, thing = list(VERBS)[number % 3], ("box", "door", "file", "shop")[number % 4]
        code = f'def {verb}_{thing}(x{number}):\n    """{VERBS[verb]} {thing}."""\n    return x{number}\n'
        (folder / f"module{number}.py").write_text(code)
    (folder / "wrong.py").write_text("def (:\n")
    return folder


def workload(folder, model=TINY, options=(), **data):
    data = {"root": str(folder), "vocab_size": 330, "source_length": 20, "target_length": 10, "validation_share": 0.2, **data}
    return Seq2Seq(spec_of("workloads.seq2seq:Seq2Seq", model, data, options))


@pytest.fixture(scope="module")
def prepared(root):
    kept = Kept()
    workload(root).prepare(kept)
    return kept


def test_functions_come_without_their_docstring_and_with_its_first_line():
    code = (
        'class A:\n    @property\n    def f(self) -> int:\n        """  What\n        it is.\n        """\n\n        return 1\n'
        '\nasync def g(x):\n    "Other."\n    pass\n\ndef none():\n    return 0\n\ndef only():\n    """Nothing but words."""\n'
    )
    assert sorted(functions(code)) == [("async def g(x):\n    pass", "Other."), ("def f(self) -> int:\n\n    return 1", "What")]
    assert list(functions("def (:\n")) == list(functions("x\0")) == []


def test_the_standard_library_has_them():
    subject = Seq2Seq(load_job_spec(["workload=seq2seq"]))
    assert subject.root.name.startswith("python3")
    subject.root = subject.root / "email"  # all of it takes seconds to parse
    assert sum(1 for _ in subject._pairs()) > 100


def test_records_are_cut_ended_and_padded(root, prepared):
    records = prepared.records("train")
    assert len(records) + prepared.num_samples("validation") == 120
    for name, length in (("source", 20), ("target", 10)):
        assert records[name].shape[1] == length and ((records[name] == 1).sum(1) == 1).all()
    again = Kept()
    workload(root).prepare(again)
    assert again.files == prepared.files and again.records("validation").tobytes() == prepared.records("validation").tobytes()
    prints = {workload(root, **data).source_fingerprint() for data in ({}, {"target_length": 9}, {"validation_share": 0.3})}
    assert len(prints) == 3 and workload(root).source_fingerprint() in prints


def test_it_learns_and_writes_the_docstring_of_a_function(root, prepared, tmp_path):
    subject = workload(root, options={"function": "def count_door(x):\n    return x"})
    torch.manual_seed(0)
    model = subject.build_model(prepared)
    before = evaluated(subject, model, prepared)
    train(subject, model, prepared, steps=150, batch_size=32)
    after = evaluated(subject, model, prepared)
    assert before["accuracy"] < 0.3 < 0.8 < after["accuracy"] and after["loss"] < before["loss"] / 3
    assert after == pytest.approx(evaluated(subject, model, prepared, batch_size=1), abs=1e-5)
    said = subject.sample(model.eval(), prepared)
    assert said.startswith('def count_door(x):\n    return x\n\n"""') and "Say how many" in said
    subject.export(model, prepared, tmp_path)
    read = T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(value, dict(model.named_parameters())[name]) for name, value in read.named_parameters())


def test_the_loss_is_the_mean_over_the_samples_without_padding(root, prepared):
    subject = workload(root)
    model = subject.build_model(prepared).eval()
    single = [subject.loss(model, prepared.batch(first=number, count=1)).item() for number in range(4)]
    assert subject.loss(model, prepared.batch(count=4)).item() == pytest.approx(sum(single) / 4, rel=1e-5)
    batch = prepared.batch(count=1)
    length = int((batch["target"] != 0).sum())
    expected = model(input_ids=batch["source"], attention_mask=(batch["source"] != 0).long(), labels=batch["target"][:, :length]).loss
    assert single[0] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("model", "millions"), [("t5-small", 60.5), ("t5-base", 222.9)])
def test_the_shipped_models_have_the_published_size(model, millions):
    options = dict(load_job_spec(["workload=seq2seq", f"model={model}"]).model.options)
    with torch.device("meta"):
        built = Architecture(**options).build(32_128)
    assert sum(parameter.numel() for parameter in built.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target_length": 1}, ConfigError, "data.options.target_length=1 is not possible: allowed is at least 2"),
        ({"vocab_size": 100}, ConfigError, "data.options.vocab_size=100"),
        ({"model": {**TINY, "num_heads": 0}}, ConfigError, "model.options.num_heads=0 is not possible"),
        ({"options": {"function": ""}}, ConfigError, "workload.options.function=''"),
        ({"root": "/nowhere"}, DataError, "data.options.root=/nowhere is not a folder"),
        ({"root": "/sys/class"}, DataError, "holds no Python functions with a docstring"),
    ],
)
def test_what_cannot_be_is_refused(root, arguments, error, message):
    with pytest.raises(error, match=message):
        list(workload(root, **arguments)._pairs())
