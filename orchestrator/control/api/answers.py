"""JSON answers, and errors: a status code and the words that the command line would print."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from orchestrator import errors
from orchestrator.control.api.shapes import Problem
from orchestrator.tracking.mlflow_run import TrackingUnavailable

STATUS: dict[type[errors.OrchestratorError], int] = {
    errors.AuthenticationError: 401,
    errors.PermissionDenied: 403,
    errors.JobNotFound: 404,
    errors.ObjectNotFound: 404,
    errors.StoreUnavailable: 503,
    errors.StorageUnavailable: 503,
    errors.ClusterError: 503,
    TrackingUnavailable: 503,
    errors.StateError: 409,
    errors.UserError: 422,
    errors.StorageError: 502,
    errors.OrchestratorError: 500,
}
"""Of an error, or of the nearest above it in the tree."""
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": about}
    for code, about in {
        400: "no JSON", 401: "no token, or one that is not known", 403: "not allowed for this user", 404: "no such thing",
        408: "the request did not arrive in time", 409: "not possible in this state", 413: "the request is too large",
        422: "cannot be done as asked", 502: "the object store refuses",
        503: "job store, object store, MLflow or Ray does not answer",
    }.items()
}  # fmt: skip

RETRY_S = 5

log = logging.getLogger("api")


def answer(value: Any, status: int = 200) -> Response:
    """Strict JSON: a figure that is no number becomes null."""
    return Response(encoded(value), status_code=status, media_type="application/json")


def encoded(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_strict(value), allow_nan=False).encode()


def _strict(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: _strict(inner) for key, inner in item.items()}
    if isinstance(item, list | tuple):
        return [_strict(inner) for inner in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item


def problem(kind: str, message: str, status: int) -> Response:
    response = answer({"error": kind, "message": message}, status)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_S)
    return response


def status_of(error: errors.OrchestratorError) -> int:
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def tell_errors(app: FastAPI) -> None:
    """Every error becomes a problem; none repeats what was sent, which may hold a secret."""

    @app.exception_handler(errors.OrchestratorError)
    def ours(_request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.OrchestratorError)
        return problem(type(error).__name__, str(error), status_of(error))

    @app.exception_handler(RequestValidationError)
    def shape(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem("ConfigError", "; ".join(_fault(found) for found in error.errors()), 422)

    @app.exception_handler(HTTPException)
    def http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = problem("UserError", str(error.detail), error.status_code)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(sa.exc.TimeoutError)
    def busy(_request: Request, error: Exception) -> Response:
        log.warning("no connection to the job store is free: %s", error)
        return problem("StoreUnavailable", "the job store does not answer: too many ask at once", 503)


def _fault(found: Any) -> str:
    """One of pydantic's errors, without the value: `body.spec: field required`."""
    where = ".".join(str(part) for part in found["loc"] if part != "body") or "the request's body"
    return f"{where}: {found['msg']}"
