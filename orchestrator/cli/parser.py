"""The parser of a verb, and the jobs that it is about: what is asked wrongly is a UserError."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from orchestrator.errors import JobNotFound, UserError
from orchestrator.paths import Home

if TYPE_CHECKING:
    from orchestrator.client.connection import Verbs


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}\n{self.format_usage().strip()}")


def parser_for(verb: str, about: str) -> Parser:
    parser = Parser(prog=f"orchestrator {verb}", description=about)
    parser.add_argument("--home", default="", help="folder of the control plane's state; default: $ORCHESTRATOR_HOME, else ~/.orchestrator")
    return parser


def verbs_of(home: Home) -> Verbs | None:
    """What can be asked of the server of $ORCHESTRATOR_SERVER, else of the jobs of `home`; None: there were never any."""
    from orchestrator.client.connection import Local, connect, server  # with SQLAlchemy: a list does without
    from orchestrator.control.database import exists

    if server():
        return connect(home, server())
    return Local(home) if exists(home) else None


def client_for(home: str, job: str) -> Verbs:
    """Of a server, or of a home that has jobs. Raises JobNotFound."""
    found = Home.find(home)
    verbs = verbs_of(found)
    if verbs is None:
        raise JobNotFound(f"no job is named '{job}': there are no jobs in {found.root}; `orchestrator train` starts one")
    return verbs
