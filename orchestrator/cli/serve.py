"""`orchestrator serve`: the control plane as a service, with its HTTP API; and its users and what they did."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.parser import Parser, parser_for
from orchestrator.cli.screen import as_json, command, table
from orchestrator.control.records import database
from orchestrator.errors import UserError, nearest
from orchestrator.paths import Home, write_private

if TYPE_CHECKING:
    from orchestrator.control.records.users import Users

PORT = 8470


def serve_(arguments: list[str]) -> int:
    """Becomes the service: does not return unless something is wrong."""
    from orchestrator.control.local import service_command
    from orchestrator.control.records.store import JobStore
    from orchestrator.control.records.users import Users
    from orchestrator.spec import ClusterSpec

    parser = parser_for("serve", "The control plane as a service: the controller and its HTTP API, until Ctrl-C or SIGTERM.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default: this machine only")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    parser.add_argument("--address", default="", metavar="HOST:PORT", help="of the Ray head; default: a local Ray cluster is started")
    parser.add_argument("--db", default="", metavar="URL", help="keep the jobs there: postgresql://USER@HOST/NAME; default: in the home")
    parser.add_argument("--num-cpus", type=int, default=0, help="of the local cluster; default: all")
    parser.add_argument("--open-reads", action="store_true", help="to look needs no token; only with --host 127.0.0.1")
    asked = parser.parse_args(arguments)
    home = Home.find(asked.home)
    api = ["--api-host", asked.host, "--api-port", str(asked.port), *(["--open-reads"] if asked.open_reads else [])]
    cluster = ClusterSpec(home=str(home.root), address=asked.address, num_cpus=asked.num_cpus)
    program = service_command(home, cluster, api, print)
    if asked.db:
        database.choose(home, asked.db)
    _check_listen(asked)
    users = Users(JobStore(database.place_of(home)).engine).all()
    url = f"http://{f'[{asked.host}]' if ':' in asked.host else asked.host}:{asked.port}"
    print(f"jobs in {database.shown(database.place_of(home))}; the API at {url}, with TLS only behind a proxy")
    print(f"the queue as a page: {url}/ui/")
    if not any(user.revoked_s is None for user in users):
        print(f"no user yet: {command('user add NAME --role admin', home)}")
    sys.stdout.flush()
    os.execve(program[0], program, {**os.environ, "ORCHESTRATOR_HOME": str(home.root)})


def _check_listen(asked: argparse.Namespace) -> None:
    """The words of the server, before it starts."""
    from orchestrator.control.api.server import ApiServer

    ApiServer(asked.host, asked.port, open_reads=asked.open_reads).close()


def user_(arguments: list[str]) -> int:
    actions = {"add": _add, "list": _list, "renew": _renew, "revoke": _revoke}
    if not arguments or arguments[0] not in actions:
        given = arguments[0] if arguments else ""
        raise UserError(f"user {given} is not possible: allowed is user {', '.join(actions)}.{nearest(given, actions)}")
    return actions[arguments[0]](arguments[1:])


def _user_parser(action: str, about: str) -> Parser:
    parser = parser_for(f"user {action}", about)
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
    users, log = _users(Home.find(asked.home))
    token = users.add(asked.name, asked.tenant or asked.name, asked.role)
    log("user add", asked.name, f"tenant {asked.tenant or asked.name}, role {asked.role}")
    return _hand_over(token, asked)


def _renew(arguments: list[str]) -> int:
    asked = _user_parser("renew", "A new token; the old one is worth nothing from now on.").parse_args(arguments)
    users, log = _users(Home.find(asked.home))
    token = users.renew(asked.name)
    log("user renew", asked.name, "")
    return _hand_over(token, asked)


def _revoke(arguments: list[str]) -> int:
    asked = _user_parser("revoke", "The user's token is worth nothing from now on.").parse_args(arguments)
    users, log = _users(Home.find(asked.home))
    users.revoke(asked.name)
    log("user revoke", asked.name, "")
    print(as_json({"user": asked.name, "revoked": True}) if asked.json else f"{asked.name}'s token is revoked")
    return 0


def _list(arguments: list[str]) -> int:
    asked = _user_parser("list", "All users.").parse_args(arguments)
    found = _users(Home.find(asked.home))[0].all()
    if asked.json:
        print(as_json([{**dataclasses.asdict(user), "role": user.role.value} for user in found]))
        return 0
    rows = [(user.name, user.tenant, user.role.value, "revoked" if user.revoked_s else "active") for user in found]
    print(table(("USER", "TENANT", "ROLE", "TOKEN"), rows) if rows else "no users; `orchestrator user add NAME` makes one")
    return 0


def audit_(arguments: list[str]) -> int:
    from orchestrator.control.client import Client

    parser = parser_for("audit", "Who changed or tried to change what.")
    parser.add_argument("--after", type=int, default=0, metavar="N", help="only entries with a higher number")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    home = Home.find(asked.home)
    found = Client(home).audit(asked.after) if database.exists(home) else []
    if asked.json:
        print(as_json([dataclasses.asdict(entry) for entry in found]))
        return 0
    rows = [(str(e.seq), _time(e.time_s), e.user, e.tenant or "-", e.action, e.subject, e.detail) for e in found]
    print(table(("NO", "TIME", "USER", "TENANT", "ACTION", "SUBJECT", "DETAIL"), rows) if rows else "nothing was changed yet")
    return 0


def _users(home: Home) -> tuple[Users, Callable[[str, str, str], None]]:
    """(the users, how a change of them is written down)."""
    from orchestrator.control.records.audit import AuditLog
    from orchestrator.control.records.store import JobStore
    from orchestrator.control.records.users import Users, local_user

    engine = JobStore(database.place_of(home)).engine
    log = AuditLog(engine)
    return Users(engine), lambda action, subject, detail: log.add(local_user(), action, subject, detail)


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


def _time(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s):%Y-%m-%d %H:%M:%S}"


def store_(arguments: list[str]) -> int:
    from orchestrator.control.records.transfer import export_store, import_store

    actions = {"export": export_store, "import": import_store}
    parser = parser_for("store", "The job store as a file of JSON lines, and back: to another schema, database or machine.")
    parser.add_argument("action", choices=list(actions))
    parser.add_argument("file", type=Path)
    parser.add_argument("--db", default="", metavar="URL", help="the store; default: that of the home")
    parser.add_argument("--json", action="store_true", help="how many rows of each kind")
    asked = parser.parse_args(arguments)
    counts = actions[asked.action](asked.db or database.place_of(Home.find(asked.home)), asked.file)
    if asked.json:
        print(as_json(counts))
        return 0
    done = "written to" if asked.action == "export" else "read from"
    print(f"{', '.join(f'{count} {name}' for name, count in counts.items() if count) or 'nothing'} {done} {asked.file}")
    return 0
