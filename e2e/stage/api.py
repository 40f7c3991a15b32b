"""The stage's own small client of the API server: JSON in, JSON out, as the administrator.

Used by `cloud`, `notices`, `cluster` and tests, which need a few objects and no watch. Errors carry the server's words.
"""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e2e.stage.pki import Authority
from e2e.stage.processes import StageError

type_of_patch = {"merge": "application/merge-patch+json", "json": "application/json-patch+json"}
NOT_FOUND = 404
CONFLICT = 409


class ApiError(StageError):
    """The API server answered with an error; `status` is its HTTP status."""

    def __init__(self, doing: str, status: int, message: str) -> None:
        super().__init__(f"{doing}: {status}: {message}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Api:
    """Requests to one API server."""

    server: str
    context: ssl.SSLContext

    @classmethod
    def administrator(cls, authority: Authority, server: str) -> "Api":
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.load_cert_chain(authority.path("admin.crt"), authority.path("admin.key"))
        return cls(server, context)

    def get(self, path: str) -> dict[str, Any]:
        """Return an object or a list; raise ApiError 404 if it is not there."""
        return self._request("GET", path)

    def find(self, path: str) -> dict[str, Any] | None:
        """Return an object, or None if it is not there."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return None

    def items(self, path: str) -> list[dict[str, Any]]:
        """Return the objects of a list as the API server's cache has them: an idle question costs etcd nothing."""
        found: list[dict[str, Any]] = self.get(f"{path}{'&' if '?' in path else '?'}resourceVersion=0")["items"]
        return found

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._request("POST", path, body)

    def patch(self, path: str, body: Any, kind: str = "merge") -> dict[str, Any]:
        """Patch an object; `kind` is a key of `type_of_patch`."""
        return self._request("PATCH", path, body, type_of_patch[kind])

    def delete(self, path: str) -> None:
        """Delete an object; one that is gone already is as good."""
        try:
            self._request("DELETE", path)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    def _request(self, method: str, path: str, body: Any = None, content: str = "application/json") -> dict[str, Any]:
        payload = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.server}{path}", payload, {"Content-Type": content}, method=method)
        try:
            with urllib.request.urlopen(request, context=self.context, timeout=10) as reply:
                answer: dict[str, Any] = json.load(reply)
                return answer
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            try:
                said = json.loads(said)["message"]
            except (ValueError, KeyError, TypeError):
                said = said[:500]
            raise ApiError(f"{method} {path}", error.code, said) from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise StageError(f"{method} {path}: the API server does not answer: {error}") from error
