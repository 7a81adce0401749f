"""The parser of a verb, and the jobs that it is about: what is asked wrongly is a UserError."""

from __future__ import annotations

import argparse
from typing import Any

from orchestrator.control.client import Client
from orchestrator.control.database import exists
from orchestrator.errors import JobNotFound, UserError
from orchestrator.paths import Home


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}\n{self.format_usage().strip()}")


def parser_for(verb: str, about: str) -> Parser:
    parser = Parser(prog=f"orchestrator {verb}", description=about)
    parser.add_argument("--home", default="", help="folder of the control plane's state; default: $ORCHESTRATOR_HOME, else ~/.orchestrator")
    return parser


def client_for(home: str, job: str) -> Client:
    """Of a home that has jobs. Raises JobNotFound."""
    found = Home.find(home)
    if not exists(found):
        raise JobNotFound(f"no job is named '{job}': there are no jobs in {found.root}; `orchestrator train` starts one")
    return Client(found)
