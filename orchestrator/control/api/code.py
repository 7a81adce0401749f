"""/v1/code: packaged working directories of jobs that name no store of their own, by the hash of their content."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Response

from orchestrator.control.api.access import Asker, Turn
from orchestrator.control.api.answers import PROBLEMS, answer

PREFIX = "/v1/code"
router = APIRouter(prefix=PREFIX, tags=["code"], responses=PROBLEMS)

Hash = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]


@router.get("/{content_hash}")
def kept(asker: Asker, _turn: Turn, content_hash: Hash) -> Response:
    """Whether the server has that package."""
    return answer({"kept": asker.has_code(content_hash)})


@router.put("/{content_hash}")
def keep(
    asker: Asker, _turn: Turn, content_hash: Hash, archive: Annotated[bytes, Body(media_type="application/octet-stream")]
) -> Response:  # fmt: skip
    """A zip file whose content has that hash, as `orchestrator.code.package` makes it."""
    return answer({"put": asker.keep_archive(content_hash, archive)})
