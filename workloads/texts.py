"""Texts with and without a class, told apart into training and validation: what `text-classifier` and `bert` read.

    python    packages of the standard library: a few lines of source code -> the package. Top-level modules and tests have no class
    debian    apt's lists: a package's description -> its section
    files     a folder of text files with one folder for each class, or a table (.csv, .jsonl) with the columns text and label

Texts of one origin (a source file, a Debian source package, equal rows of a table) are never in both splits, unless a table says the
split of each row.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import DataError

from .requirements import require

SOURCES = ("python", "debian", "files")
TABLES = (".csv", ".jsonl")
_PASSED_OVER = frozenset({"site-packages", "dist-packages", "__pycache__"})
_UNTOLD = frozenset({"test", ""})  # of the standard library: the tests of all packages, and modules outside a package


@dataclass(frozen=True, kw_only=True)
class Text:
    origin: str
    """What it was cut from; decides the split."""
    label: str
    """Empty: no class is known."""
    text: str
    split: str = ""
    """`train` or `validation` where the source says it."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """`data.options`: which texts, and which of their classes."""

    source: str = "python"
    """python, debian or files."""
    path: str = ""
    """Of `files`: the folder or the table. Of `python`: another folder of packages; empty: the standard library."""
    lines_per_text: int = 8
    """Of `python`: lines of code in one text, blank ones not counted."""
    text_column: str = "text"
    label_column: str = "label"
    split_column: str = ""
    """Of a table: the column that says `train`, or `held_out`, of a row; rows of other splits are left out. Empty: a hash decides."""
    held_out: str = "validation"
    """What `split_column` says of the rows to evaluate with: `test` when every choice was made with `validation`."""
    classes: tuple[str, ...] = ()
    """Texts of other classes count as texts without one. Empty: every class with at least `min_texts` training texts."""
    min_texts: int = 50
    validation_share: float = 0.2
    """Share of the origins that is held out."""
    split_seed: int = 0

    def __post_init__(self) -> None:
        require(self.source in SOURCES, "data.options.source", self.source, ", ".join(SOURCES))
        ok = self.source != "files" or self.path != ""
        require(ok, "data.options.path", "''", "a folder with one folder of texts for each class, or a .csv or .jsonl file")
        require(self.source != "debian" or not self.path, "data.options.path", self.path, "empty: apt knows where its lists are")
        table = self.source == "files" and Path(self.path).suffix in TABLES
        allowed = "empty: only a .csv or .jsonl file has columns"
        require(table or not self.split_column, "data.options.split_column", self.split_column, allowed)
        ok = self.held_out not in ("", "train") and (self.split_column != "" or self.held_out == "validation")
        require(ok, "data.options.held_out", self.held_out, "another split than train, named in data.options.split_column")
        require(self.lines_per_text >= 1, "data.options.lines_per_text", self.lines_per_text, "at least 1")
        require(len(self.classes) != 1, "data.options.classes", self.classes, "two classes or more, or none: all of them")
        require(self.min_texts >= 1, "data.options.min_texts", self.min_texts, "at least 1")
        require(0 < self.validation_share < 1, "data.options.validation_share", self.validation_share, "between 0 and 1")
        require(self.split_seed >= 0, "data.options.split_seed", self.split_seed, "0 or more")

    def read(self) -> list[Text]:
        """All texts in an order that does not depend on the file system. Raises DataError where the source has none."""
        found = sorted(_READERS[self.source](self), key=lambda text: (text.origin, text.label))  # the order within an origin stays
        if not found:
            raise DataError(f"data.options.source={self.source} gives no texts: {self.path or 'its source is empty'}.")
        if self.split_column and len({text.split for text in found}) < 2:
            wanted = f"rows with train and rows with {self.held_out}"
            raise DataError(f"{self.path}: the column {self.split_column} must have {wanted}; it has none of one of them.")
        return found

    def split_of(self, text: Text) -> str:
        """`train` or `validation`."""
        if text.split:
            return text.split
        name = f"{self.split_seed or ''}{text.origin}"
        return "validation" if share_of(name) < self.validation_share else "train"

    def classes_of(self, texts: list[Text]) -> list[str]:
        """The classes that are told apart, in order. Raises DataError where there are fewer than two, or a named one has no text."""
        counted = Counter(text.label for text in texts if text.label and self.split_of(text) == "train")
        for name in self.classes:
            if not counted[name]:
                known = ", ".join(name for name, _ in counted.most_common(12))
                raise DataError(f"data.options.classes names {name}, which has no training text. The most frequent are {known}.")
        found = sorted(self.classes) or sorted(name for name, count in counted.items() if count >= self.min_texts)
        if len(found) < 2:
            known = f"{len(found)} classes with data.options.min_texts={self.min_texts} or more"
            raise DataError(f"the texts have {known}; at least 2 are needed.")
        return found


def _python(asked: Texts) -> Iterator[Text]:
    root = Path(asked.path or sysconfig.get_paths()["stdlib"])
    require_folder(root)
    for path in files_below(root, ".py"):
        name = path.relative_to(root).as_posix()
        package = name.partition("/")[0] if "/" in name else ""
        lines = [line for line in _decoded(path).splitlines() if line.strip()]
        for first in range(0, len(lines) - asked.lines_per_text + 1, asked.lines_per_text):
            label = "" if package in _UNTOLD else package
            yield Text(origin=name, label=label, text="\n".join(lines[first : first + asked.lines_per_text]))


def _debian(asked: Texts) -> Iterator[Text]:
    """One text for each package in apt's lists."""
    try:
        done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(f"data.options.source=debian is not possible here: `apt-cache dumpavail` failed: {error}") from error
    known: set[tuple[str, str]] = set()
    for paragraph in done.stdout.split("\n\n"):
        fields = _fields(paragraph)
        text = " ".join(line.strip() for line in fields.get("Description", "").splitlines() if line.strip() != ".")
        origin = fields.get("Source", fields.get("Package", "")).partition(" ")[0]
        if text and (origin, text) not in known:  # a package stands there once for each version
            known.add((origin, text))
            yield Text(origin=origin, label=fields.get("Section", "").rpartition("/")[2], text=text)


def _fields(paragraph: str) -> dict[str, str]:
    """Of a Debian control paragraph (deb822): lines that begin with a blank continue the field before."""
    fields, name = dict[str, str](), ""
    for line in paragraph.splitlines():
        if line[:1] in (" ", "\t"):
            fields[name] = fields.get(name, "") + "\n" + line
        else:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields


def _files(asked: Texts) -> Iterator[Text]:
    path = Path(asked.path)
    if path.suffix in TABLES:
        yield from _table(asked, path)
        return
    require_folder(path)
    for file in files_below(path, ""):
        name = file.relative_to(path).as_posix()
        label, _, rest = name.partition("/")
        if rest:
            yield Text(origin=name, label=label, text=_decoded(file))


def _table(asked: Texts, path: Path) -> Iterator[Text]:
    if not path.is_file():
        raise DataError(f"data.options.path={path} is not a file.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)
        try:
            for row in rows:
                if not asked.split_column or row[asked.split_column] in ("train", asked.held_out):
                    yield _row(asked, row)
        except (ValueError, KeyError, TypeError) as error:
            wanted = " and ".join(name for name in (asked.text_column, asked.label_column, asked.split_column) if name)
            raise DataError(f"{path}: a row is not as expected, with {wanted}: {type(error).__name__}: {error}.") from error


def _row(asked: Texts, row: dict[str, object]) -> Text:
    text, label = str(row[asked.text_column] or ""), row[asked.label_column]
    split = {"train": "train", asked.held_out: "validation"}[str(row[asked.split_column])] if asked.split_column else ""
    return Text(origin=text, label="" if label is None else str(label), text=text, split=split)


def files_below(root: Path, suffix: str, passed_over: frozenset[str] = _PASSED_OVER) -> Iterator[Path]:
    """In the order of the file system, without what lies in folders of the names `passed_over`."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in passed_over]  # os.walk goes into what is left here
        yield from (Path(folder, name) for name in names if name.endswith(suffix))


def require_folder(path: Path, flag: str = "data.options.path") -> None:
    if not path.is_dir():
        raise DataError(f"{flag}={path} is not a folder.")


def share_of(name: str) -> float:
    """A number from 0 up to 1 that looks drawn and is always the same for a name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") / 2**64


def _decoded(path: Path) -> str:
    """A file's text; what is not UTF-8 in it is replaced."""
    return path.read_bytes().decode("utf-8", errors="replace")


_READERS: dict[str, Callable[[Texts], Iterator[Text]]] = {"python": _python, "debian": _debian, "files": _files}
