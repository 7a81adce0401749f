"""Texts from every source, their split and classes, and how they become tokens."""

from __future__ import annotations

import json
import os
import stat

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from orchestrator.errors import ConfigError, DataError
from workloads.texts import Text, Texts
from workloads.tokens import Recipe, encode, inputs_of, special_tokens, train_tokenizer


@pytest.fixture
def packages(tmp_path):
    """A library of three packages with tests and a module outside."""
    for number in range(30):
        path = tmp_path / f"package{number % 3}" / f"module{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"line_{line} = {number}\n\n" for line in range(10)))
    for name in ("alone.py", "test/test_all.py", "__pycache__/x.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# text\n" * 4)
    return tmp_path


def test_source_code_is_cut_into_texts_of_a_package(packages):
    found = Texts(path=str(packages), lines_per_text=4).read()
    assert {text.label for text in found} == {"package0", "package1", "package2", ""}
    assert {text.origin for text in found if not text.label} == {"alone.py", "test/test_all.py"}
    cut = [text for text in found if text.origin == "package1/module1.py"]
    assert [text.text.splitlines()[0] for text in cut] == ["line_0 = 1", "line_4 = 1"]  # two lines are left, too few for a text
    assert all(len(text.text.splitlines()) == 4 for text in found)


def test_the_standard_library_has_enough_of_both_kinds():
    asked = Texts(min_texts=200)
    found = asked.read()
    assert {"asyncio", "email", "tkinter"} <= set(asked.classes_of(found))
    assert sum(not text.label for text in found) > 1000


def test_texts_of_one_origin_are_in_one_split_and_the_seed_moves_them(packages):
    found = Texts(path=str(packages), lines_per_text=4).read()
    splits = {seed: {text.origin: Texts(split_seed=seed).split_of(text) for text in found} for seed in range(5)}
    assert all(set(of_seed.values()) == {"train", "validation"} for of_seed in splits.values())
    assert len({json.dumps(of_seed) for of_seed in splits.values()}) == 5


def test_classes_are_those_named_or_those_with_enough_texts(packages):
    def classes(**options):
        asked = Texts(path=str(packages), lines_per_text=4, **options)
        return asked.classes_of(asked.read())

    assert classes(min_texts=1) == ["package0", "package1", "package2"]
    assert classes(classes=("package2", "package0")) == ["package0", "package2"]
    with pytest.raises(DataError, match=r"names nothing, which has no training text. The most frequent are package"):
        classes(classes=("package0", "nothing"))
    with pytest.raises(DataError, match=r"the texts have 0 classes with data.options.min_texts=50 or more; at least 2 are needed"):
        classes(min_texts=50)


def test_a_folder_and_tables_say_the_same(tmp_path):
    rows = [("good", "a fine thing"), ("bad", 'a "poor" thing,\nreally'), ("good", "well done")]
    for number, (label, text) in enumerate(rows):
        (tmp_path / "folder" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / label / f"{number}.txt").write_text(text)
    (tmp_path / "folder" / "README").write_text("of no class")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for label, text in rows))
    quoted = ['"' + text.replace('"', '""') + '"' for _, text in rows]
    lines = [f"{label},{text}\r\n" for (label, _), text in zip(rows, quoted, strict=True)]
    (tmp_path / "t.csv").write_text("kind,content\r\n" + "".join(lines), newline="")
    read = [
        Texts(source="files", path=str(tmp_path / "folder")).read(),
        Texts(source="files", path=str(tmp_path / "t.jsonl")).read(),
        Texts(source="files", path=str(tmp_path / "t.csv"), text_column="content", label_column="kind").read(),
    ]
    assert [{(text.label, text.text) for text in found} for found in read] == [set(rows)] * 3


def test_equal_rows_of_a_table_are_in_one_split(tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": "same", "label": label}) + "\n" for label in ("a", None)))
    found = Texts(source="files", path=str(tmp_path / "t.jsonl")).read()
    assert [text.label for text in found] == ["", "a"] and len({text.origin for text in found}) == 1


SPLITS = [("a", "train"), ("b", "train"), ("c", "validation"), ("a", "test"), ("d", "test"), ("e", "unused")]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_may_say_the_split_of_its_rows_and_which_is_held_out(tmp_path, kind):
    path = tmp_path / f"t.{kind}"
    rows = [{"text": text, "label": "x", "part": part} for text, part in SPLITS]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)] if kind == "csv" else map(json.dumps, rows)
    path.write_text("".join(f"{line}\n" for line in lines))

    def split(held_out):
        asked = Texts(source="files", path=str(path), split_column="part", held_out=held_out)
        return sorted((text.text, asked.split_of(text)) for text in asked.read())

    trained = [("a", "train"), ("b", "train")]
    assert split("validation") == [*trained, ("c", "validation")]
    assert split("test") == sorted([*trained, ("a", "validation"), ("d", "validation")])
    with pytest.raises(DataError, match=r"the column part must have rows with train and rows with dev; it has none of one of them"):
        split("dev")
    with pytest.raises(DataError, match=r"a row is not as expected, with text and label and kind: KeyError"):
        Texts(source="files", path=str(path), split_column="kind").read()


DUMP = """Package: foo-doc
Source: foo (1.2)
Section: doc
Description: manual of foo
 How to use it.
 .
 Second part.

Package: foo
Section: non-free/net
Description: a server

Package: foo
Section: net
Description: a server

Package: empty
Section: net
"""


def test_debian_packages_come_once_each_with_their_source(tmp_path, monkeypatch):
    script = tmp_path / "apt-cache"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{DUMP}END\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = Texts(source="debian").read()
    assert sorted((text.origin, text.label, text.text) for text in found) == [
        ("foo", "doc", "manual of foo How to use it. Second part."), ("foo", "net", "a server"),
    ]  # fmt: skip
    script.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(DataError, match=r"data.options.source=debian is not possible here: `apt-cache dumpavail` failed"):
        Texts(source="debian").read()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": "hub"}, ConfigError, "data.options.source=hub is not possible: allowed is python, debian, files"),
        ({"source": "files"}, ConfigError, "data.options.path='' is not possible: allowed is a folder with one folder"),
        ({"source": "debian", "path": "/x"}, ConfigError, "data.options.path=/x is not possible: allowed is empty"),
        ({"split_column": "split"}, ConfigError, "data.options.split_column=split is not possible: allowed is empty: only a .csv"),
        ({"source": "files", "path": "/x", "split_column": "split"}, ConfigError, "data.options.split_column=split is not possible"),
        ({"held_out": "test"}, ConfigError, "data.options.held_out=test is not possible: allowed is another split than train, named in"),
        ({"source": "files", "path": "x.csv", "split_column": "s", "held_out": "train"}, ConfigError, "data.options.held_out=train"),
        ({"classes": ("a",)}, ConfigError, r"data.options.classes=.*allowed is two classes or more"),
        ({"source": "files", "path": "/nowhere"}, DataError, "data.options.path=/nowhere is not a folder"),
        ({"source": "files", "path": "/nowhere.csv"}, DataError, "data.options.path=/nowhere.csv is not a file"),
    ],
)
def test_a_source_that_cannot_be_is_refused_by_its_flag(options, error, message):
    with pytest.raises(error, match=message):
        Texts(**options).read()


@pytest.mark.parametrize("content", ['{"text": "x"}\n', "not JSON\n", "[1]\n"])
def test_a_damaged_table_is_named(tmp_path, content):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"t.jsonl: a row is not as expected, with text and label"):
        Texts(source="files", path=str(tmp_path / "t.jsonl")).read()


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(DataError, match="gives no texts"):
        Texts(path=str(tmp_path)).read()


# tokens


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Some words of a text", "other words"], 300, lowercase=True)


def test_a_text_becomes_a_record_of_fixed_length(tokenizer):
    tokens = encode(tokenizer, ["some words", "words " * 50, "π"], 8)
    special = special_tokens(tokenizer)
    assert (special.pad, tokens.shape, tokens.dtype) == (0, (3, 8), np.dtype("<u2"))
    assert tokens[0, 0] == special.first and special.last in tokens[0] and tokens[0, -1] == special.pad
    assert tokens[1, 0] == special.first and tokens[1, -1] == special.last and special.pad not in tokens[1]
    assert tokenizer.decode(tokens[0].tolist()).strip() == "some words"
    assert np.array_equal(encode(tokenizer, ["SOME Words"], 8)[0], tokens[0])  # lower case


def test_padding_is_masked_and_what_is_padding_for_all_is_cut_off():
    tokens, mask = inputs_of(torch.tensor([[1, 5, 2, 0, 0], [1, 5, 6, 2, 0]]), 0)
    assert tokens.tolist() == [[1, 5, 2, 0], [1, 5, 6, 2]] and mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_a_tokenizer_that_is_no_encoders_is_refused():
    from workloads.gpt import train_tokenizer as train_decoder_tokenizer

    with pytest.raises(DataError, match=r"has no token \[PAD\] or <pad>, which an encoder needs"):
        special_tokens(train_decoder_tokenizer(["x"], 260))


def test_the_fingerprint_is_that_of_texts_recipe_tokenizer_and_purpose():
    texts = [Text(origin="a", label="b", text="c")]
    base = Recipe().fingerprint("classes", None, texts)
    others = [
        Recipe(length=50).fingerprint("classes", None, texts), Recipe().fingerprint("no classes", None, texts),
        Recipe().fingerprint("classes", b"{}", texts), Recipe().fingerprint("classes", None, texts * 2),
        Recipe().fingerprint("classes", None, [Text(origin="a", label="bc", text="")]),
        Recipe().fingerprint("classes", None, [Text(origin="a", label="b", text="c", split="train")]),
    ]  # fmt: skip
    assert len({base, *others}) == 7 and Recipe(path="/elsewhere").fingerprint("classes", None, texts) == base
