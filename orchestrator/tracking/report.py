"""The loss curve as a picture and the history as JSON, from the rows of `orchestrator.tracking.journal`; and the goodput ledger."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def loss_plot(history: Rows, evaluations: Rows) -> bytes:
    """A PNG of 900 x 500 pixels: training and validation loss over the steps. Rows without a `loss` are left out."""
    # Imported here: matplotlib takes half a second, and only the end of a job needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    _draw(axes, history, "training", {"linewidth": 1.0, "color": "tab:blue"})
    _draw(axes, evaluations, "validation", {"marker": "o", "color": "tab:orange"})
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def goodput_plot(seconds: Mapping[str, float], goodput_share: float) -> bytes:
    """A PNG of 900 x 500 pixels: a bar of worker-seconds for each bucket that has any, with its part of all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total = sum(seconds.values())
    shown = {name: spent_s for name, spent_s in seconds.items() if spent_s > 0}
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlabel="worker-seconds", title=f"{total:.0f} worker-seconds, goodput {100 * goodput_share:.1f} %")
    colors = ["tab:green" if name == "step" else "tab:gray" for name in shown]
    bars = axes.barh(list(shown), list(shown.values()), color=colors)
    axes.bar_label(bars, [f"{100 * spent_s / total:.1f} %" for spent_s in shown.values()], padding=3)
    axes.margins(x=0.1)
    axes.invert_yaxis()  # in the order of a job's life, from above
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def history_json(history: Rows, evaluations: Rows) -> bytes:
    """`{"history": [row ...], "evaluations": [row ...]}`, a row per line."""
    parts = (f'"{name}": [\n{_lines(rows)}\n]' for name, rows in (("history", history), ("evaluations", evaluations)))
    return ("{" + ",\n".join(parts) + "}\n").encode()


def _draw(axes: Any, rows: Rows, label: str, style: Mapping[str, Any]) -> None:
    points = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    if points:
        steps, losses = zip(*points, strict=True)
        axes.plot(steps, losses, label=label, **style)


def _lines(rows: Rows) -> str:
    return ",\n".join(json.dumps(dict(row)) for row in rows)
