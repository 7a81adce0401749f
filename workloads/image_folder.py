"""Images of one's own: a folder with one folder of images for each class, in the layout that torchvision's ImageFolder reads.

    path/<class>/...                          validation images are drawn from each class
    path/train/<class>/..., path/val/...      or the folders say which they are; `validation` is as good as `val`

Every image becomes a square of one size. Records are `image: uint8[channels, size, size]` and `label: int64`, in an order that mixes the
classes. Beside them lie the names of the classes and, for standardising, mean and deviation of each channel of the training images.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps

from orchestrator.errors import DataError
from orchestrator.spec import to_dict
from orchestrator.workload import DatasetSink, DatasetView

from .requirements import require

CLASSES_FILE = "classes.json"
STATISTICS_FILE = "statistics.json"
_FLAG = "data.options.path"
_FORMAT = 1  # of the recipe: a change here makes every data set anew
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
_VALIDATION_FOLDERS = ("val", "validation")
_MODES = {"rgb": "RGB", "gray": "L"}
_CHUNK_BYTES = 8 * 2**20
_MAX_THREADS = 16
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for a file that is no image, or not a whole one."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    name: str
    """Path below the folder."""
    label: str


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """`data.options` with a `path`."""

    path: str
    """Seen by every node: any may be the one that prepares the data set."""
    image_size: int = 256
    """Height and width that images are stored with; training crops are cut out of them."""
    fit: str = "crop"
    """crop: the shorter side is scaled to image_size and the middle is kept; stretch: both sides are scaled."""
    channels: str = "rgb"
    """rgb or gray."""
    validation_share: float = 0.1
    """Share of each class's images that is held out, where no folders say it."""
    split_seed: int = 0
    unreadable: str = "refuse"
    """An image that cannot be read: refuse, or skip and count it."""

    def __post_init__(self) -> None:
        require(self.path != "", _FLAG, "''", "a folder with one folder of images for each class")
        require(1 <= self.image_size <= 4096, "data.options.image_size", self.image_size, "1 to 4096")
        require(self.fit in ("crop", "stretch"), "data.options.fit", self.fit, "crop or stretch")
        require(self.channels in _MODES, "data.options.channels", self.channels, " or ".join(_MODES))
        require(0 < self.validation_share < 1, "data.options.validation_share", self.validation_share, "between 0 and 1")
        require(self.split_seed >= 0, "data.options.split_seed", self.split_seed, "0 or more")
        require(self.unreadable in ("refuse", "skip"), "data.options.unreadable", self.unreadable, "refuse or skip")

    @property
    def num_channels(self) -> int:
        return len(_MODES[self.channels])

    def fingerprint(self) -> str:
        """Over the recipe, Pillow's version, and each image's path, size and time of change: reading all of them would take hours."""
        recipe = {**to_dict(self), "path": ""}
        digest = hashlib.blake2b(digest_size=20)
        digest.update(json.dumps([_FORMAT, PIL.__version__, recipe], sort_keys=True).encode())
        for split, files in self._files()[0].items():
            for file in files:
                status = Path(self.path, file.name).stat()
                digest.update(f"{split} {len(file.name)} {file.name} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def prepare(self, sink: DatasetSink) -> None:
        """Raises DataError for a folder that is not as above, and for the first image that cannot be read."""
        splits, passed_over = self._files()
        if passed_over:
            sink.progress(f"passing over {passed_over:,} files that are in no class or whose name is not that of an image")
        classes = sorted({file.label for file in splits["train"]})
        sink.add_file(CLASSES_FILE, json.dumps(classes).encode())
        counted = np.zeros((self.num_channels, 256), dtype=np.int64)
        for split, files in splits.items():
            seen = Counter[int]()
            for images, labels in self._read(split, files, classes, sink):
                records = np.empty(len(images), dtype=[("image", "u1", images.shape[1:]), ("label", "<i8")])
                records["image"], records["label"] = images, labels
                sink.write(split, records)
                seen.update(labels)
                if split == "train":
                    counted += [np.bincount(images[:, channel].reshape(-1), minlength=256) for channel in range(self.num_channels)]
            missing = [name for number, name in enumerate(classes) if split == "train" and not seen[number]]
            if missing:
                raise DataError(f"{_FLAG}={self.path}: class {missing[0]} has no training image that can be read.")
        sink.add_file(STATISTICS_FILE, json.dumps(_statistics(counted)).encode())

    def classes(self, dataset: DatasetView) -> list[str]:
        found: list[str] = json.loads(dataset.file(CLASSES_FILE))
        return found

    def statistics(self, dataset: DatasetView) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel."""
        stored = json.loads(dataset.file(STATISTICS_FILE))
        return stored["mean"], stored["deviation"]

    def _read(self, split: str, files: list[ImageFile], classes: list[str], sink: DatasetSink) -> Iterator[tuple[Array, list[int]]]:
        """(images uint8[n, channels, size, size], labels) of the files, some at a time, so that memory does not grow with their number."""
        numbers = {name: number for number, name in enumerate(classes)}
        threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
        at_once = max(threads, _CHUNK_BYTES // (self.num_channels * self.image_size**2))
        skipped, first_why = 0, ""
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(files), at_once):
                sink.progress(f"reading {split} images: {first:,} of {len(files):,}" + (f", {skipped:,} skipped" if skipped else ""))
                chunk = files[first : first + at_once]
                read = list(pool.map(self._image, chunk))
                why = [image for image in read if isinstance(image, str)]
                if why and self.unreadable == "refuse":
                    raise DataError(f"{why[0]} data.options.unreadable=skip leaves such files out.")
                skipped, first_why = skipped + len(why), first_why or next(iter(why), "")
                good = [(image, numbers[file.label]) for image, file in zip(read, chunk, strict=True) if not isinstance(image, str)]
                if good:
                    yield np.stack([image for image, _ in good]), [label for _, label in good]
        if skipped:
            sink.progress(f"skipped {skipped:,} of {len(files):,} {split} images that cannot be read; the first: {first_why}")

    def _image(self, file: ImageFile) -> Array | str:
        """uint8[channels, size, size], or why the file cannot be read."""
        path = Path(self.path, file.name)
        try:
            return _squared(path, self.image_size, self.fit, _MODES[self.channels])
        except _DAMAGE as error:
            return f"{path} cannot be read as an image: {error or type(error).__name__}."

    def _files(self) -> tuple[dict[str, list[ImageFile]], int]:
        """The images of each split in the order in which they are stored, and how many other files there are."""
        root = Path(self.path)
        if not root.is_dir():
            raise DataError(f"{_FLAG}={root} is not a folder.")
        given = [name for name in _VALIDATION_FOLDERS if (root / name).is_dir()] if (root / "train").is_dir() else []
        if len(given) > 1:
            raise DataError(f"{_FLAG}={root} has both val and validation; one of them can hold the validation images.")
        if given:
            train, other = self._classes_in("train")
            validation, other_too = self._classes_in(given[0])
            _check_classes(validation, train, root / given[0])
            splits, passed_over = {"train": _all(train), "validation": _all(validation)}, other + other_too
        else:
            found, passed_over = self._classes_in("")
            splits = self._split(found)
        return {split: sorted(files, key=self._place) for split, files in splits.items()}, passed_over

    def _classes_in(self, below: str) -> tuple[dict[str, list[ImageFile]], int]:
        """The images of each class folder in a folder, and how many other files there are. Raises DataError for fewer than two classes."""
        root = Path(self.path, below)
        folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if len(folders) < 2:
            found = f"only the class {folders[0]}" if folders else "no folder"
            raise DataError(f"{_FLAG}={self.path}: {root} has {found}; at least 2 classes are needed, each a folder of images.")
        classes, passed_over = {}, sum(path.is_file() for path in root.iterdir())
        for label in folders:
            names = [Path(folder, name) for folder, _, names in os.walk(root / label, followlinks=True) for name in names]
            images = [path for path in names if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")]
            if not images:
                raise DataError(f"{root / label} has no images: allowed are {', '.join(_SUFFIXES)}. Remove the folder if it is no class.")
            classes[label] = [ImageFile(name=path.relative_to(self.path).as_posix(), label=label) for path in images]
            passed_over += len(names) - len(images)
        return classes, passed_over

    def _split(self, classes: Mapping[str, list[ImageFile]]) -> dict[str, list[ImageFile]]:
        """The same share of every class is held out; at least one image of each stays."""
        splits: dict[str, list[ImageFile]] = {"train": [], "validation": []}
        for files in classes.values():
            ordered = sorted(files, key=self._place)
            count = min(round(len(files) * self.validation_share), len(files) - 1)
            splits["validation"] += ordered[:count]
            splits["train"] += ordered[count:]
        if not splits["validation"]:
            share = f"data.options.validation_share={self.validation_share}"
            raise DataError(f"{_FLAG}={self.path}: {share} of each class is less than one image.")
        return splits

    def _place(self, file: ImageFile) -> bytes:
        """Sorting by this mixes the classes, and no other file changes it."""
        return hashlib.blake2b(f"{self.split_seed} {file.name}".encode(), digest_size=16).digest()


def _squared(path: Path, size: int, fit: str, mode: str) -> Array:
    """An image of any size and kind as uint8[channels, size, size], turned as its EXIF says. Raises one of `_DAMAGE`."""
    with Image.open(path) as opened:
        opened.draft(mode, (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size, still at least that
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I;16"):  # convert() would cut its values off at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError("its pixels have 32 bits, and how bright they can be is not known")
        image = image.convert(mode)
    square = (size, size)
    image = image.resize(square, Image.Resampling.BICUBIC) if fit == "stretch" else ImageOps.fit(image, square, Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(pixels.reshape(size, size, -1).transpose(2, 0, 1))


def _statistics(counted: Array) -> dict[str, list[float]]:
    """Mean and deviation of each channel from how often it has each value, int64[channels, 256]. A deviation of 0 counts as 1."""
    values, total = np.arange(256.0), counted.sum(axis=1)
    mean = counted @ values / total
    deviation = np.sqrt(np.maximum(counted @ values**2 / total - mean**2, 0))
    return {"mean": mean.tolist(), "deviation": np.where(deviation > 0, deviation, 1.0).tolist()}


def _check_classes(validation: Mapping[str, Any], train: Mapping[str, Any], folder: Path) -> None:
    unknown = sorted(validation.keys() - train.keys())
    if unknown:
        raise DataError(f"{folder / unknown[0]} is a class that has no training images: it is not among {', '.join(sorted(train)[:12])}.")


def _all(classes: Mapping[str, list[ImageFile]]) -> list[ImageFile]:
    return [file for files in classes.values() for file in files]
