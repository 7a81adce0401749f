from __future__ import annotations

import json
import struct

from orchestrator.tracking.report import goodput_plot, history_json, loss_plot

HISTORY = [{"step": step, "time_s": 0.0, "loss": 5 / step, "lr": 0.1} for step in range(1, 50)]
EVALUATIONS = [{"step": 0, "time_s": 0.0, "loss": 5.5}, {"step": 49, "time_s": 1.0, "loss": 0.2}]


def test_the_plot_is_a_png_of_the_promised_size() -> None:
    picture = loss_plot(HISTORY, EVALUATIONS)
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (900, 500)


def test_the_plot_shows_both_curves() -> None:
    pictures = {loss_plot(HISTORY, EVALUATIONS), loss_plot(HISTORY, []), loss_plot([], EVALUATIONS), loss_plot([], [])}
    assert len(pictures) == 4


def test_the_plot_of_the_ledger_shows_what_there_is() -> None:
    pictures = {goodput_plot({"start": 5.0, "step": seconds, "lost": 0.0}, 0.5) for seconds in (0.0, 5.0, 50.0)}
    assert len(pictures) == 3
    assert struct.unpack(">II", next(iter(pictures))[16:24]) == (900, 500)
    assert goodput_plot({}, 0.0).startswith(b"\x89PNG")


def test_a_history_without_a_loss_is_no_error() -> None:
    assert loss_plot([{"step": 1, "time_s": 0.0}], []) == loss_plot([], [])


def test_json_holds_all_rows_one_per_line() -> None:
    content = history_json(HISTORY, EVALUATIONS)
    assert json.loads(content) == {"history": HISTORY, "evaluations": EVALUATIONS}
    assert len(content.splitlines()) == len(HISTORY) + len(EVALUATIONS) + 4
    assert json.loads(history_json([], [])) == {"history": [], "evaluations": []}
