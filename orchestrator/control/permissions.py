"""What one user may do with the jobs of a store. Whoever tries more is refused, and the attempt stands in the audit log, unless
nobody can be named."""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa

from orchestrator.control.records import audit
from orchestrator.control.records.database import Also
from orchestrator.control.records.users import Role, User
from orchestrator.errors import PermissionDenied
from orchestrator.job import Job
from orchestrator.spec import JobSpec

ANYBODY = User(name="anybody", tenant="", role=Role.VIEWER)
"""Who has no token, where none is needed to look."""


class Permissions:
    def __init__(self, user: User, engine: sa.Engine) -> None:
        self._user = user
        self._engine = engine

    def require(self, role: Role, action: str, subject: str) -> None:
        """Raises PermissionDenied for a user of a lesser role."""
        if not self._user.role.allows(role):
            if self._user is not ANYBODY:
                self.note(f"refused {action}", subject)
            raise PermissionDenied(f"{self._user.name} has the role {self._user.role.value}; `{action}` needs the role {role.value}.")

    def require_own(self, job: Job, action: str) -> None:
        """Raises PermissionDenied for a job of another tenant, unless the user is an admin."""
        self.require(Role.USER, action, job.id)
        if self._user.role is not Role.ADMIN and self._user.tenant != job.tenant:
            self.note(f"refused {action}", job.id)
            whose = f"the tenant {job.tenant}" if job.tenant else "no tenant"
            raise PermissionDenied(
                f"{job.id} belongs to {whose}, {self._user.name} to {self._user.tenant}: only an admin may {action} it."
            )  # fmt: skip

    def owned(self, spec: JobSpec) -> JobSpec:
        """`spec` with the user's tenant, whose quota it counts against. Raises PermissionDenied if it names another one; an admin may."""
        named, own = spec.scheduling.tenant, self._user.tenant
        if named == own or (named and self._user.role is Role.ADMIN):
            return spec
        if named:
            self.note("refused submit", f"scheduling.tenant={named}")
            raise PermissionDenied(f"scheduling.tenant={named} is not possible: {self._user.name} belongs to {own}. Leave it out.")
        return dataclasses.replace(spec, scheduling=dataclasses.replace(spec.scheduling, tenant=own))

    def entry(self, action: str, subject: str, detail: str = "") -> Also:
        """What writes down what was done."""
        return audit.entry(self._user, action, subject, detail)

    def note(self, action: str, subject: str, detail: str = "") -> None:
        """Write it down at once."""
        audit.AuditLog(self._engine).add(self._user, action, subject, detail)

    def read(self, after: int | None, limit: int) -> list[audit.Entry]:
        self.require(Role.ADMIN, "audit", "")
        return audit.AuditLog(self._engine).read(after, limit)
