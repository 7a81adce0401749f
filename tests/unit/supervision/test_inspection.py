"""How ranks that stand still are looked at."""

from __future__ import annotations

import os
import threading
import time

from orchestrator.supervision.inspection import _wait_for_stacks


def test_stacks_that_come_late_are_waited_for(tmp_path):
    """As on a machine that is overloaded."""
    files = [tmp_path / "0.stack", tmp_path / "1.stack"]
    for file in files:
        file.write_text("of an earlier look\n")
    size = files[0].stat().st_size

    def answer():
        time.sleep(0.5)
        for file in files:
            with file.open("a") as opened:
                opened.write("late")

    writer = threading.Thread(target=answer)
    writer.start()
    _wait_for_stacks({os.getpid(): (files[0], size), os.getppid(): (files[1], size)})
    assert [file.read_text()[size:] for file in files] == ["late"] * 2
    writer.join()
