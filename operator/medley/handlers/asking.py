"""One HTTP request to a pod, and what becomes of its errors. Called by `routers` and `supervisors`."""

from __future__ import annotations

from typing import Any

import aiohttp

from medley.core import names
from medley.core.errors import EngineError

TIMEOUT_SECONDS = 2.0
OK = 200


def url_of(scheme: str, address: str, port: int, path: str) -> str:
    """Return the URL of a path at a pod's address, IPv4 or IPv6."""
    return f"{scheme}://{names.url_host(address)}:{port}{path}"


async def answered(session: aiohttp.ClientSession, method: str, url: str, **options: Any) -> str:
    """Return the text that a pod answers with 200; EngineError says what came instead. `options`: aiohttp's."""
    try:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with session.request(method, url, timeout=timeout, **options) as response:
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{method} {url}: {type(error).__name__}: {error}") from error
    if response.status != OK:
        raise EngineError(f"{method} {url}: {response.status}: {text[:500]}")
    return text
