"""One flipped bit among three copies: found, and on which rank: real gloo ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from patience import TRAINING_LIMIT_S


def test_a_flipped_bit_is_found_and_its_rank_named():
    command = [sys.executable, str(Path(__file__).with_name("replicas.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRAINING_LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
