"""The parser of a verb: what is asked wrongly is a UserError."""

from __future__ import annotations

import argparse
from typing import Any

from orchestrator.errors import UserError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}\n{self.format_usage().strip()}")


def parser_for(verb: str, about: str) -> Parser:
    parser = Parser(prog=f"orchestrator {verb}", description=about)
    parser.add_argument("--home", default="", help="folder of the control plane's state; default: $ORCHESTRATOR_HOME, else ~/.orchestrator")
    return parser
