"""What the API server said, translated once into the tree of `core/errors.py`."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

from medley.core.errors import ClusterError, ObjectGoneError


class ConflictError(ClusterError):
    """The object exists already, or somebody else changed it or owns a field of it."""


class RefusedError(ClusterError):
    """The API server will never take this object as it is (invalid, forbidden); a person must change something."""


class ExpiredError(ClusterError):
    """The resource version is too old to watch from; list again."""


@contextmanager
def translated(doing: str) -> Generator[None, None, None]:
    """Raise what the API server or the way to it said as a `ClusterError` that begins with `doing`, a gerund."""
    try:
        yield
    except ApiException as error:
        raise of_status(int(error.status or 0), f"{doing}: {_message(error)}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ClusterError(f"{doing}: {type(error).__name__}: {error}") from error


def of_status(status: int, message: str) -> ClusterError:
    """Return the error for an HTTP status of the API server."""
    match status:
        case HTTPStatus.NOT_FOUND:
            return ObjectGoneError(message)
        case HTTPStatus.CONFLICT:
            return ConflictError(message)
        case HTTPStatus.GONE:
            return ExpiredError(message)
        case HTTPStatus.BAD_REQUEST | HTTPStatus.FORBIDDEN | HTTPStatus.UNPROCESSABLE_ENTITY:
            return RefusedError(message)
        case _:
            return ClusterError(message)


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"
