"""The users of a job store, for an admin: what is done to them, and what was refused, stands in the audit log; no token does."""

from __future__ import annotations

import sqlalchemy as sa

from orchestrator.control.permissions import Permissions
from orchestrator.control.records.users import Role, User, Users
from orchestrator.errors import StateError


class Administration:
    def __init__(self, engine: sa.Engine, may: Permissions, *, keep_an_admin: bool) -> None:
        """`keep_an_admin`: the last one cannot be revoked. Whoever works on the control plane's own files needs none."""
        self._users = Users(engine)
        self._may = may
        self._keep_an_admin = keep_an_admin

    def all(self) -> list[User]:
        self._may.require(Role.ADMIN, "user list", "")
        return self._users.all()

    def add(self, name: str, tenant: str = "", role: str = Role.USER.value) -> str:
        """A new user's token, which is kept nowhere. `tenant`: default the user's own name.

        Raises ConfigError for a name, tenant or role that cannot be, UserError if the name is taken.
        """
        self._may.require(Role.ADMIN, "user add", name)
        tenant = tenant or name
        return self._users.add(name, tenant, role, [self._may.entry("user add", name, f"tenant {tenant}, role {role}")])

    def renew(self, name: str) -> str:
        """A new token; the old one is worth nothing from now on. Raises UserError for a user who is not known."""
        self._may.require(Role.ADMIN, "user renew", name)
        return self._users.renew(name, [self._may.entry("user renew", name)])

    def revoke(self, name: str) -> None:
        """The user's token is worth nothing from now on. Raises UserError for a user who is not known, StateError for the last admin."""
        self._may.require(Role.ADMIN, "user revoke", name)
        if self._users.revoke(name, [self._may.entry("user revoke", name)], keep_an_admin=self._keep_an_admin):
            return
        self._may.note("refused user revoke", name, "the last admin")
        raise StateError(
            f"{name} is the last admin: without it nobody could make users over HTTP. Make another one first "
            "(`orchestrator user add NAME --role admin`), or revoke it beside the server: on its machine, without $ORCHESTRATOR_SERVER."
        )
