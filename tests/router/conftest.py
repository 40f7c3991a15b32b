"""A router over stub engines, on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from medley.router.fleet import FleetView, Limits, Replica
from medley.router.main import Running, running
from medley.router.server import Followed, Options
from medley.router.settings import RouterSettings
from tests.router.stub_engine import MODEL, TOKENIZER, StubEngine


@dataclass
class Stage:
    """What a test may change while the router runs."""

    router: Running
    replicas: dict[str, Replica]
    engines: dict[str, StubEngine] = field(default_factory=dict)
    waiting: dict[str, Replica] = field(default_factory=dict)  # that run, and the router does not see yet
    kept: Followed = field(init=False)

    def change(self, name: str, **changes) -> None:
        self.show({**self.replicas, name: replace(self.replicas[name], **changes)})

    def show(self, replicas: dict[str, Replica]) -> None:
        self.replicas = dict(replicas)
        self.kept.fleet.replace(FleetView(dict(self.replicas)))

    def admit(self) -> None:
        """Let the router see the rest."""
        self.show({**self.replicas, **self.waiting})

    def named(self) -> list[tuple[str, StubEngine]]:
        return [(name, engine) for name, engine in self.engines.items() if name in self.replicas]

    @staticmethod
    def replica(name: str, url: str, **fields) -> Replica:
        return Replica(name, url, **fields)

    @property
    def url(self) -> str:
        return self.router.url


@asynccontextmanager
async def staged(
    engines: Sequence[StubEngine],
    tokenizer: Path,
    *,
    silence: float = 5.0,
    first_token: float = 60.0,
    deadline: float = 60.0,
    queue_limit: int = 256,
    max_running: int = 64,
    key_file: Path | None = None,
    rest: Sequence[StubEngine] = (),
) -> AsyncIterator[Stage]:
    """Run a router over `engines`, named e0, e1, …; `rest` are shown to it later."""
    async with AsyncExitStack() as stack:
        shown, engines = len(engines), [*engines, *rest]
        urls = [await stack.enter_async_context(engine.running()) for engine in engines]
        replicas = {
            f"e{n}": Replica(f"e{n}", url, max_running=max_running, resumes_output=engine.resumes_output)
            for n, (url, engine) in enumerate(zip(urls, engines, strict=True))
        }
        waiting = {name: replicas.pop(name) for name in list(replicas)[shown:]}
        stage = Stage(None, replicas, {f"e{n}": engine for n, engine in enumerate(engines)}, waiting)

        async def source(kept: Followed, _) -> None:
            stage.kept = kept
            kept.serving.model = MODEL
            kept.fleet.replace(FleetView(dict(replicas)))
            await asyncio.Event().wait()

        settings = RouterSettings(
            engines=("http://named.by.the.source",),
            tokenizer=tokenizer,
            engine_key_file=key_file,
            host="127.0.0.1",
            port=0,
            limits=Limits(timedelta(seconds=silence), timedelta(seconds=first_token)),
            options=Options(timedelta(seconds=deadline), queue_limit),
            grace=timedelta(seconds=0.2),
        )
        stage.router = await stack.enter_async_context(running(settings, source))
        yield stage


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(TOKENIZER.to_str())
    return path
