"""`orchestrator user` and `audit`: who may do what, and who did what; of this machine's jobs, or of the server's."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from datetime import datetime
from pathlib import Path

from orchestrator.cli.parser import Parser, parser_for, verbs_of
from orchestrator.cli.screen import as_json, command, table
from orchestrator.client.connection import UserVerbs, connect, server
from orchestrator.errors import UserError, nearest
from orchestrator.paths import Home, write_private

ENTRIES = 1000
"""Of the audit log, shown at once."""
HELP = """\
usage: orchestrator user ACTION ... [--json] [--home FOLDER]

  add NAME                     a new user: --tenant, --role, --token-file
  list
  renew NAME                   a new token; the old one is worth nothing from now on
  revoke NAME                  the token is worth nothing from now on
"""


def user_(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="", flush=True)
        return 0
    actions = {"add": _add, "list": _list, "renew": _renew, "revoke": _revoke}
    if not arguments or arguments[0] not in actions:
        given = arguments[0] if arguments else ""
        raise UserError(f"user {given} is not possible: allowed is user {', '.join(actions)}.{nearest(given, actions)}")
    return actions[arguments[0]](arguments[1:])


def _user_parser(action: str, about: str) -> Parser:
    parser = parser_for(f"user {action}", f"{about} Through the server of $ORCHESTRATOR_SERVER it needs an admin's token.")
    if action != "list":
        parser.add_argument("name")
    if action in ("add", "renew"):
        parser.add_argument("--token-file", default="", metavar="FILE", help="write the token there, mode 0600, instead of printing it")
    parser.add_argument("--json", action="store_true")
    return parser


def _add(arguments: list[str]) -> int:
    parser = _user_parser("add", "A new user; the token is shown once.")
    parser.add_argument("--tenant", default="", help="whose jobs the user may change; default: the user's own name")
    parser.add_argument("--role", default="user", help="admin (all jobs), user (those of the tenant), viewer (looks on); default: user")
    asked = parser.parse_args(arguments)
    _check_file(asked.token_file)
    return _hand_over(_users(asked).add(asked.name, asked.tenant, asked.role), asked)


def _renew(arguments: list[str]) -> int:
    asked = _user_parser("renew", "A new token; the old one is worth nothing from now on.").parse_args(arguments)
    _check_file(asked.token_file)
    return _hand_over(_users(asked).renew(asked.name), asked)


def _revoke(arguments: list[str]) -> int:
    asked = _user_parser("revoke", "The user's token is worth nothing from now on.").parse_args(arguments)
    _users(asked).revoke(asked.name)
    print(as_json({"user": asked.name, "revoked": True}) if asked.json else f"{asked.name}'s token is revoked")
    return 0


def _list(arguments: list[str]) -> int:
    asked = _user_parser("list", "All users.").parse_args(arguments)
    found = _users(asked).all()
    if asked.json:
        print(as_json([{**dataclasses.asdict(user), "role": user.role.value} for user in found]))
        return 0
    rows = [(user.name, user.tenant, user.role.value, "revoked" if user.revoked_s else "active") for user in found]
    print(table(("USER", "TENANT", "ROLE", "TOKEN"), rows) if rows else "no users; `orchestrator user add NAME` makes one")
    return 0


def _users(asked: argparse.Namespace) -> UserVerbs:
    return connect(Home.find(asked.home), server()).users


def _check_file(file: str) -> None:
    """Before there is a token that would be lost. Raises UserError."""
    if not file:
        return
    path = Path(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"--token-file {file} is not possible: {error.strerror}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--token-file {file} is not possible: allowed is a file in a folder that you may write to.")


def _hand_over(token: str, asked: argparse.Namespace) -> int:
    file = asked.token_file
    if file:
        write_private(Path(file), f"{token}\n")
    if asked.json:
        print(as_json({"user": asked.name, **({"token_file": file} if file else {"token": token})}))
    elif file:
        print(f"the token is in {file}; use it: export ORCHESTRATOR_TOKEN_FILE={file}")
    else:
        print(token)
        print("this is the only time that it is shown; use it: export ORCHESTRATOR_TOKEN=...", file=sys.stderr)
    return 0


def audit_(arguments: list[str]) -> int:
    parser = parser_for("audit", "Who changed or tried to change what.")
    parser.add_argument("--after", type=int, default=None, metavar="N", help="the first entries with a higher number; default: the newest")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    verbs = verbs_of(Home.find(asked.home))
    found = verbs.audit(asked.after, ENTRIES) if verbs is not None else []
    if asked.json:
        print(as_json([dataclasses.asdict(entry) for entry in found]))
        return 0
    rows = [(str(e.seq), _time(e.time_s), e.user, e.tenant or "-", e.action, e.subject, e.detail) for e in found]
    print(table(("NO", "TIME", "USER", "TENANT", "ACTION", "SUBJECT", "DETAIL"), rows) if rows else "nothing was changed yet")
    if len(found) == ENTRIES:
        which, after = ("the newest; from the first one on", 0) if asked.after is None else ("next", found[-1].seq)
        print(f"{which}: {command(f'audit --after {after}', Home.find(asked.home))}")
    return 0


def _time(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s):%Y-%m-%d %H:%M:%S}"
