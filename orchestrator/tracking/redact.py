"""The one sink through which text passes on its way to MLflow, so that no secret gets there."""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "***"
_SECRET_NAME = re.compile(r"(^|[._/-])(password|passwd|secret|token|api_?key|(secret_)?access_?key)$", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(r"(SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY)", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")
_SHORTEST_SECRET = 6


class Redactor:
    """Hides values of secret-looking environment variables, credentials in URLs, and settings whose name says secret."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        secrets = {value for name, value in environ.items() if _SECRET_VARIABLE.search(name) and not name.endswith(("_PATH", "_FILE"))}
        # Longest first, so that a secret that contains another one goes as a whole. Shorter values would blank ordinary words.
        self._secrets = sorted((s for s in secrets if len(s) >= _SHORTEST_SECRET), key=len, reverse=True)

    def text(self, value: str) -> str:
        for secret in self._secrets:
            value = value.replace(secret, HIDDEN)
        return _URL_PASSWORD.sub(f"{HIDDEN}@", value)

    def setting(self, name: str, value: str) -> str:
        return HIDDEN if value and _SECRET_NAME.search(name) else self.text(value)
