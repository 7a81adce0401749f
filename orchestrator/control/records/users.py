"""Who may do what: users with a role and a tenant, known by a token of which only a hash is kept.

A token is 256 random bits, so a plain SHA-256 of it cannot be searched. It is shown once, when it is made.
"""

from __future__ import annotations

import enum
import getpass
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from orchestrator.control.records.database import Also, create_tables, execute, lock_key, writing
from orchestrator.control.records.tables import metadata
from orchestrator.errors import AuthenticationError, ConfigError, UserError, nearest
from orchestrator.paths import safe_name
from orchestrator.spec import SchedulingSpec

_PREFIX = "orc"

TABLE = sa.Table(
    "users",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("tenant", sa.String, nullable=False),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("token_hash", sa.String, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("revoked_s", sa.Float),
)

_OF_NAME = sa.select(TABLE).where(TABLE.c.name == sa.bindparam("name"))


class Role(enum.Enum):
    """What a user may do; each may also do what those before it may."""

    VIEWER = "viewer"  # look
    USER = "user"  # submit; change the jobs of the own tenant
    ADMIN = "admin"  # change all jobs and users, forgive machines, read the audit log

    def allows(self, needed: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, kw_only=True)
class User:
    name: str
    tenant: str
    role: Role
    created_s: float = 0.0
    revoked_s: float | None = None


def local_user() -> User:
    """Who works on the control plane's own files: the account on this machine."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        name = f"uid-{os.getuid()}"
    return User(name=name, tenant="", role=Role.ADMIN)


_ADMINS = sa.select(TABLE.c.name).where(TABLE.c.role == Role.ADMIN.value, TABLE.c.revoked_s.is_(None))


class Users:
    """The users of one job store. `also`: statements that are executed with a change, in its transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        create_tables(engine, TABLE)

    def add(self, name: str, tenant: str, role: str, also: Sequence[Also] = ()) -> str:
        """A new user's token. Raises ConfigError for a name, tenant or role that cannot be, UserError if the name is taken."""
        safe_name(name)
        SchedulingSpec(tenant=tenant)
        chosen, token = role_named(role), _new_token(name)
        row = {"name": name, "tenant": tenant, "role": chosen.value, "token_hash": _hashed(token), "created_s": time.time()}
        try:
            with writing(self._engine) as connection:
                connection.execute(TABLE.insert().values(**row))
                execute(connection, also)
        except sa.exc.IntegrityError as error:
            raise UserError(f"there is already a user named {name}: `orchestrator user renew {name}` makes a new token.") from error
        return token

    def renew(self, name: str, also: Sequence[Also] = ()) -> str:
        """A new token for a user, also for one that was revoked; the old one is worth nothing from now on."""
        token = _new_token(name)
        with writing(self._engine) as connection:
            self._change(connection, name, also, token_hash=_hashed(token), revoked_s=None)
        return token

    def revoke(self, name: str, also: Sequence[Also] = (), *, keep_an_admin: bool = False) -> bool:
        """The user's token is worth nothing from now on. With `keep_an_admin` the last admin stays as it is: then False."""
        with writing(self._engine) as connection:
            lock_key(connection, "users")
            if keep_an_admin and list(connection.execute(_ADMINS).scalars()) == [name]:
                return False
            self._change(connection, name, also, revoked_s=time.time())
        return True

    def all(self) -> list[User]:
        with self._engine.connect() as connection:
            return [_user(row) for row in connection.execute(sa.select(TABLE).order_by(TABLE.c.name)).mappings()]

    def of_token(self, token: str) -> User:
        """Raises AuthenticationError. Says the same for a name that is not known as for a token that is wrong."""
        name = token.removeprefix(f"{_PREFIX}.").rpartition(".")[0]
        with self._engine.connect() as connection:
            row = connection.execute(_OF_NAME, {"name": name.replace("\x00", "")}).mappings().first()
        held = "" if row is None or row["revoked_s"] is not None else row["token_hash"]
        if row is None or not hmac.compare_digest(held, _hashed(token)):
            raise AuthenticationError("this token is not known, or was revoked: `orchestrator user renew NAME` makes a new one.")
        return _user(row)

    def _change(self, connection: sa.Connection, name: str, also: Sequence[Also], **values: object) -> None:
        known = list(connection.execute(sa.select(TABLE.c.name).order_by(TABLE.c.name)).scalars())
        if name not in known:
            raise UserError(f"no user is named '{name}'. Known: {', '.join(known) or 'none'}.{nearest(name, known)}")
        connection.execute(TABLE.update().where(TABLE.c.name == name).values(**values))
        execute(connection, also)


def role_named(name: str) -> Role:
    allowed = [role.value for role in Role]
    if name not in allowed:
        raise ConfigError(f"role={name} is not possible: allowed is {', '.join(allowed)}.{nearest(name, allowed)}")
    return Role(name)


def _new_token(name: str) -> str:
    return f"{_PREFIX}.{name}.{secrets.token_urlsafe(32)}"


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _user(row: sa.RowMapping) -> User:
    return User(
        name=row["name"], tenant=row["tenant"], role=Role(row["role"]), created_s=row["created_s"], revoked_s=row["revoked_s"]
    )  # fmt: skip
