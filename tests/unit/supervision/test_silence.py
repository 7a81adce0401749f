"""Which agents are taken for lost although their process lives."""

from __future__ import annotations

import subprocess
import sys

from patience import LIMIT_S

from orchestrator.supervision.silence import LONGEST_LOOK_S, SILENCE_LIMIT_S, Silence


def test_one_that_says_nothing_for_too_long_is_found_and_the_others_are_not():
    silence, told, found = Silence(3), {0: 0, 1: 5}, {}
    for second in range(1, 200):
        told[0] += 1
        told[2] = told.get(2, 0) + (second % 50 == 0)
        for bundle in silence.look(told, float(second)):
            found.setdefault(bundle, second)
    assert found == {1: 2 + SILENCE_LIMIT_S}, "at the first look it had said something"


def test_a_supervisor_that_was_frozen_has_not_waited():
    silence, most = Silence(1), int(SILENCE_LIMIT_S / LONGEST_LOOK_S)
    looks = [silence.look({0: 1}, 3600.0 * number) for number in range(most + 2)]
    assert [bool(found) for found in looks] == [False] * (most + 1) + [True]


def test_a_clock_that_is_set_back_is_no_silence():
    silence = Silence(1)
    assert not any(silence.look({0: 1}, now_s) for now_s in (1000.0, 1030.0, 10.0, 11.0, 1000.0))


def test_an_error_in_a_vital_thread_ends_the_process_with_its_traceback():
    program = """
import threading
from orchestrator.supervision.vital import start_vital
start_vital("ranks", lambda: 1 / 0)
threading.Event().wait()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 1
    assert "the thread 'ranks' failed" in ended.stderr and "ZeroDivisionError" in ended.stderr
