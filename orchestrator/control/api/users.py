"""/v1/users: who may do what. For admins."""

from __future__ import annotations

import dataclasses

from fastapi import APIRouter, Response

from orchestrator.control.api.access import Asker
from orchestrator.control.api.answers import PROBLEMS, answer
from orchestrator.control.api.shapes import NewToken, NewUser, Revoked, UserList

router = APIRouter(prefix="/v1/users", tags=["users"], responses=PROBLEMS)


@router.get("", response_model=UserList)
def list_users(asker: Asker) -> Response:
    """All of them, also those whose token was revoked."""
    return answer({"users": [{**dataclasses.asdict(user), "role": user.role.value} for user in asker.users.all()]})


@router.post("", status_code=201, response_model=NewToken)
def add(asker: Asker, asked: NewUser) -> Response:
    """A new user, and the token. If the answer is lost, renew it."""
    return _told_once(asked.name, asker.users.add(asked.name, asked.tenant, asked.role), 201)


@router.post("/{name}/renew", response_model=NewToken)
def renew(asker: Asker, name: str) -> Response:
    """A new token, also for a user who was revoked; the old one is worth nothing from now on."""
    return _told_once(name, asker.users.renew(name), 200)


@router.post("/{name}/revoke", response_model=Revoked)
def revoke(asker: Asker, name: str) -> Response:
    """The user's token is worth nothing from now on. The last admin is not revoked."""
    asker.users.revoke(name)
    return answer({"user": name, "revoked": True})


def _told_once(name: str, token: str, status: int) -> Response:
    response = answer({"user": name, "token": token}, status)
    response.headers["Cache-Control"] = "no-store"
    return response
