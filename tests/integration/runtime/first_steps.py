"""`python first_steps.py TASK.json`: a rank, forked as the warm process forks it. What it imports itself is written beside the task.

With BARE in the environment the recorded list is not imported before.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[3])]


def main(task_file):
    from orchestrator.runtime.preload import import_known, preload
    from orchestrator.runtime.task import RankTask

    import_known() if os.environ.get("BARE") else preload()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    from orchestrator.runtime import rank

    before, after = set(sys.modules), task_file.with_suffix(".modules")
    os.environ["FIRST_STEPS_FILE"] = str(after)
    code = rank.main(RankTask.from_dict(json.loads(task_file.read_text())))
    own = [name for name in json.loads(after.read_text()) if name not in before]
    task_file.with_suffix(".imports").write_text(json.dumps(own))
    return code


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
