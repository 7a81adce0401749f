"""What a classifier's evaluation says: sums over batches, figures from them, and report files.

Sums are exact: counts are int64, the others float64, and adding them over batches and ranks gives those of the whole split.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn import functional

Array = np.ndarray[Any, Any]

NUM_BINS = 15
_NAMED_AXES = 40  # more classes than that are told apart by number
_COUNTED_CELLS = 12  # more classes than that leave no room for a number in each cell


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    name: str
    precision: float
    """Share of the samples taken for this class that are of it; 0 if none was."""
    recall: float
    """Share of this class's samples that were taken for it; 0 if there are none."""
    f1: float
    samples: int


def sums_of(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums over a batch of `logits` float32[n, classes], `labels` int64[n].

    `confusion_matrix` int64[classes, classes]: rows are true, columns what was predicted. `bin_count` int64[15], `bin_right`
    int64[15], `bin_confidence` float64[15]: samples, right ones and confidences by the highest probability (Guo et al. 2017).
    """
    num_classes = logits.shape[-1]
    confidence, predicted = torch.softmax(logits.double(), -1).max(-1)
    bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    right = predicted == labels
    return {
        "loss_sum": functional.cross_entropy(logits, labels, reduction="none").double().sum(),
        "count": torch.tensor(len(labels), device=labels.device),
        "confusion_matrix": torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes),
        "bin_count": torch.bincount(bins, minlength=NUM_BINS),
        "bin_right": torch.bincount(bins[right], minlength=NUM_BINS),
        "bin_confidence": torch.zeros(NUM_BINS, dtype=torch.float64, device=labels.device).index_add(0, bins, confidence),
    }


def figures(sums: Mapping[str, Array]) -> dict[str, float]:
    """`loss`, `accuracy`, `macro_f1` (mean over the classes that have samples), `calibration_error` (expected, 15 bins)."""
    count, matrix = float(sums["count"]), np.asarray(sums["confusion_matrix"])
    return {
        "loss": float(sums["loss_sum"]) / count,
        "accuracy": float(np.trace(matrix)) / count,
        "macro_f1": float(np.mean([row.f1 for row in per_class(matrix) if row.samples])),
        "calibration_error": float(np.abs(sums["bin_right"] - sums["bin_confidence"]).sum()) / count,
    }


def per_class(matrix: Array, names: Sequence[str] = ()) -> list[ClassScore]:
    """One row for each class of `matrix`; `names` default to the numbers."""
    right, true, taken = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    scores = zip(right / np.maximum(taken, 1), right / np.maximum(true, 1), 2 * right / np.maximum(true + taken, 1), true, strict=True)
    return [
        ClassScore(name=name, precision=float(precision), recall=float(recall), f1=float(f1), samples=int(samples))
        for name, (precision, recall, f1, samples) in zip(names or _numbers(matrix), scores, strict=True)
    ]


def report_files(sums: Mapping[str, Array], names: Sequence[str], what: str) -> dict[str, bytes]:
    """Confusion matrix and calibration (JSON, PNG), scores by class (JSON). `what` is a sample's name in the plural, for the title."""
    matrix = np.asarray(sums["confusion_matrix"], dtype=np.int64)
    counts = {"rows": "true", "columns": "predicted", "classes": list(names), "counts": matrix.tolist()}
    bins = {name: np.asarray(sums[name]).tolist() for name in ("bin_count", "bin_right", "bin_confidence")}
    return {
        "confusion_matrix.json": json.dumps(counts).encode(),
        "per_class.json": json.dumps([dataclasses.asdict(row) for row in per_class(matrix, names)], indent=1).encode(),
        "calibration.json": json.dumps(bins).encode(),
        "confusion_matrix.png": draw(matrix, names, what),
        "calibration.png": draw_calibration(sums, what),
    }


def draw(matrix: Array, names: Sequence[str] = (), what: str = "samples") -> bytes:
    """The confusion matrix as a PNG, coloured by the share of each true class."""
    classes = list(names) or _numbers(matrix)
    side = min(14.0, max(6.0, 0.3 * len(classes)))
    figure = Figure(figsize=(side, side), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"accuracy {np.trace(matrix) / max(1, matrix.sum()):.1%} of {matrix.sum()} held-out {what}")
    if len(classes) <= _NAMED_AXES:
        axes.set_xticks(range(len(classes)), classes, rotation=0 if len(classes) <= _COUNTED_CELLS else 90)
        axes.set_yticks(range(len(classes)), classes)
    if len(classes) <= _COUNTED_CELLS:
        for row, column in np.argwhere(matrix):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color)
    return _png(canvas)


def draw_calibration(sums: Mapping[str, Array], what: str = "samples") -> bytes:
    """The reliability diagram as a PNG (Guo et al. 2017, arXiv:1706.04599): accuracy by confidence, and how many there are of each."""
    count, right, confidence = (np.asarray(sums[name], dtype=float) for name in ("bin_count", "bin_right", "bin_confidence"))
    filled, total = count > 0, max(1.0, count.sum())
    middle = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    figure = Figure(figsize=(6, 7), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], linestyle="--", color="gray", label="as sure as right")
    upper.bar(middle[filled], right[filled] / count[filled], width=0.9 / NUM_BINS, color="tab:blue", alpha=0.7, label="share that is right")
    upper.plot(confidence[filled] / count[filled], right[filled] / count[filled], "o", color="tab:orange", label="at its mean confidence")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    upper.set_title(f"calibration error {np.abs(right - confidence).sum() / total:.3f} on {count.sum():.0f} held-out {what}")
    upper.legend(loc="upper left")
    lower.bar(middle, count / total, width=0.9 / NUM_BINS, color="tab:blue")
    lower.set(xlabel="confidence", ylabel=f"share of {what}")
    return _png(canvas)


def _png(canvas: FigureCanvasAgg) -> bytes:
    content = io.BytesIO()
    canvas.print_png(content)
    return content.getvalue()


def _numbers(matrix: Array) -> list[str]:
    return [str(number) for number in range(len(matrix))]
