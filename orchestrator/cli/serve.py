"""`orchestrator serve` and `store`: the control plane as a service, with its HTTP API, and its job store as a file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from orchestrator.cli.parser import parser_for
from orchestrator.cli.screen import as_json, command
from orchestrator.control.records import database
from orchestrator.paths import Home
from orchestrator.ports import API_PORT


def serve_(arguments: list[str]) -> int:
    """Becomes the service: does not return unless something is wrong."""
    from orchestrator.control.local import service_command
    from orchestrator.control.records.store import JobStore
    from orchestrator.control.records.users import Users
    from orchestrator.spec import ClusterSpec

    parser = parser_for("serve", "The control plane as a service: the controller and its HTTP API, until Ctrl-C or SIGTERM.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default: this machine only")
    parser.add_argument("--port", type=int, default=API_PORT, help=f"default: {API_PORT}")
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


def store_(arguments: list[str]) -> int:
    from orchestrator.control.records.transfer import export_store, import_store

    actions = {"export": export_store, "import": import_store}
    parser = parser_for("store", "The job store as a file of JSON lines, and back: to another schema, database or machine.")
    parser.add_argument("action", choices=list(actions))
    parser.add_argument("file", type=Path)
    parser.add_argument("--db", default="", metavar="URL", help="the store; default: that of the home")
    parser.add_argument("--json", action="store_true", help="how many rows of each kind")
    asked = parser.parse_args(arguments)
    where = database.as_argument(asked.db) if asked.db else database.place_of(Home.find(asked.home))
    counts = actions[asked.action](where, asked.file)
    if asked.json:
        print(as_json(counts))
        return 0
    done = "written to" if asked.action == "export" else "read from"
    print(f"{', '.join(f'{count} {name}' for name, count in counts.items() if count) or 'nothing'} {done} {asked.file}")
    return 0
