"""What the API server asks the engine core: methods added to it, run between its steps. Installed by connector.py.

vLLM calls a method of the engine core by its name, in its main thread, also when it is idle. So nothing else runs while
requests are exported: what a ticket says is what the client will have got.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.request import Request, RequestStatus

from medley.core.service import MigrationMode
from medley.engine.kv.activation import EXPORT, RELEASE, RENEW, STATE
from medley.engine.kv.connector import MedleyConnector
from medley.engine.kv.scheduler_half import SchedulerHalf, external_id
from medley.wire.ticket import Exported, ExportRequest, KvState, ReleaseRequest, RenewRequest


def install() -> None:
    """Add the methods to this process's engine core."""
    for name, method in ((EXPORT, _export), (RENEW, _renew), (RELEASE, _release), (STATE, _state)):
        setattr(EngineCoreProc, name, method)


def _export(self: EngineCoreProc, body: str) -> str:
    """Return `Exported` for an `ExportRequest`, both JSON."""
    asked, half = ExportRequest.model_validate_json(body), _half(self)
    running = {external_id(each.request_id): each for each in _unfinished(self)}
    names = tuple(running) if asked.requests is None else tuple(dict.fromkeys(asked.requests))
    chosen = [running[name] for name in names if name in running]
    tickets = half.export(chosen, asked.lease_s, lambda: _wake(self, half))
    if not asked.keep_running:
        # After all tokens that were sampled: both go through one queue, so the stream holds each of them.
        aborted = self.scheduler.finish_requests([each.request_id for each in chosen], RequestStatus.FINISHED_ABORTED)
        self._send_abort_outputs(aborted)
    unknown = tuple(name for name in names if name not in running)
    return Exported(tickets=tickets, unknown=unknown).model_dump_json()


def _renew(self: EngineCoreProc, body: str) -> str:
    """Return `Held` for a `RenewRequest`, both JSON."""
    asked = RenewRequest.model_validate_json(body)
    return _half(self).renew(asked.exports, asked.lease_s).model_dump_json()


def _release(self: EngineCoreProc, body: str) -> str:
    """Return `Held` for a `ReleaseRequest`, both JSON."""
    return _half(self).release(ReleaseRequest.model_validate_json(body).exports).model_dump_json()


def _state(self: EngineCoreProc) -> str:
    """Return `KvState`, JSON."""
    connector: Any = self.scheduler.get_kv_connector()
    if not isinstance(connector, MedleyConnector):
        reason = "vLLM runs with another KV connector"
        return KvState(mode=MigrationMode.RESUME, capable=False, reason=reason).model_dump_json()
    return connector.scheduler.state().model_dump_json()


def _half(engine: EngineCoreProc) -> SchedulerHalf:
    connector: Any = engine.scheduler.get_kv_connector()
    assert isinstance(connector, MedleyConnector), "endpoints.py asks for the state first"
    return connector.scheduler


def _unfinished(engine: EngineCoreProc) -> list[Request]:
    return [each for each in engine.scheduler.requests.values() if not each.is_finished()]


def _wake(engine: EngineCoreProc, half: SchedulerHalf) -> None:
    """Let the engine's own thread end leases, from any thread: an idle engine sleeps on its queue."""
    engine._idle_state_callbacks.append(lambda _: half.expire())  # noqa: SLF001 - checked at start
    engine.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))
