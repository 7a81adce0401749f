"""On PYTHONPATH of a cluster whose GPUs are pretended: ranks that were given one compute on the CPU."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder

NAME = "orchestrator.runtime.accelerator"


class _OnCpu:
    """Changes that module as it is imported."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != NAME:
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            choose = module.choose_device
            module.choose_device = lambda gpus_per_worker, local_rank: choose(0, local_rank)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _OnCpu)
