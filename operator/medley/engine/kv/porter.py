"""Carries blocks between engines in a process of its own, beside each worker of vLLM. Started by `errands`.

A thread of the worker would do, were it not for Python: TLS gives and takes 16 KiB at a time, and after each piece the
thread has to wait until the one that steps the model, which never sleeps, lets it go on. Here nobody else is.
The worker keeps what must not leave it: the cache, the secret of its grants, and the decision what is given.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Final

from medley.engine.kv.channels import PAIRS, PART_BYTES, Channels, Errand, Part, Staging
from medley.engine.kv.connections import Connection, Connections
from medley.engine.kv.messages import Answer, PinQuery, ProtocolError, ReadRequest, parse_answer
from medley.engine.kv.network import Network
from medley.engine.kv.server import Holder, Payload

_LOG: Final = logging.getLogger("medley.kv.porter")


class Porter:
    """Both directions: answers other engines with what the worker gives, and fetches what the worker wants."""

    def __init__(self, main: socket.socket, staging: Staging, listening: socket.socket, network: Network) -> None:
        self._staging = staging
        self._connections = Connections(network.client, stall_s=network.stall_s)
        self._channels = Channels(main, self._fetch)
        # Apart, so that what is fetched never waits for what is given, nor the other way round.
        self._giving, self._taking = _Pairs(0, PAIRS // 2), _Pairs(PAIRS // 2, PAIRS)
        self._holder = Holder(listening, self._answer, network.keyring, stall_s=network.stall_s)

    def run(self) -> None:
        """Work until the worker is gone."""
        self._channels.accept()

    def close(self) -> None:
        """Let go of all connections."""
        self._holder.close()
        self._connections.close()
        self._channels.close()

    def _answer(self, question: ReadRequest | PinQuery) -> Answer | Payload:
        """Let the worker answer; it puts bytes into the shared memory, part by part."""
        channel = self._channels.take()
        channel.send(question)
        answer = parse_answer(channel.receive())
        if answer.remote is not None or not answer.bytes_total:
            self._channels.give(channel)
            return answer
        return Payload(answer.bytes_total, self._parts(channel, answer.bytes_total))

    def _parts(self, channel: Connection, left: int) -> Iterator[memoryview]:
        try:
            with self._giving.taken() as pair:
                channel.send(pair[0])
                for turn in count(1):
                    part = _filled(channel.receive(), left)
                    left -= part.size
                    if left:
                        channel.send(pair[turn % 2])
                    yield self._staging.part(part)
                    if not left:
                        break
        except BaseException:
            channel.close()
            raise
        self._channels.give(channel)

    def _fetch(self, channel: Connection) -> None:
        """Run errands that come over one channel; its end ends the errand under way."""
        while True:
            errand = Errand.model_validate_json(channel.receive())
            fault = ""
            # Memory before bytes are asked for: who gives holds some, too, until they are taken.
            with self._taking.taken() if errand.expected else nullcontext() as pair:
                try:
                    self._bring(channel, errand, pair)
                except _GoneError:
                    return
                except (OSError, ProtocolError) as error:
                    fault = str(error) or type(error).__name__
            channel.send(Part(fault=fault))

    def _bring(self, channel: Connection, errand: Errand, pair: tuple[Part, Part] | None) -> None:
        with self._connections.to(errand.host, errand.port) as connection:
            connection.send(errand.question)
            answer = parse_answer(connection.receive())
            _tell(channel, answer)
            left = answer.bytes_total if answer.ok and answer.remote is None else 0
            if left != errand.expected or pair is None:
                if left:
                    raise ProtocolError("bytes that nobody wants")  # the worker says how many were wanted
                return
            filling, free = pair
            told = 0
            while left:
                part = Part(at=filling.at, size=min(left, PART_BYTES))
                try:
                    connection.fill_pieces([self._staging.part(part)], lambda: None)
                except OSError:
                    if told:  # the worker's word about the part before is no errand
                        _heard(channel)
                    raise
                left -= part.size
                if told:  # the other part is free when the worker says so
                    _heard(channel)
                _tell(channel, part)
                told += 1
                filling, free = free, filling
            if told:
                _heard(channel)


def _filled(body: bytes, left: int) -> Part:
    part = Part.model_validate_json(body)
    if not 0 < part.size <= left:
        raise ProtocolError(f"expected up to {left} bytes more of the worker, got {part}")
    return part


class _GoneError(Exception):
    """The worker does not want it any more."""


def _tell(channel: Connection, message: Answer | Part) -> None:
    try:
        channel.send(message)
    except OSError as error:
        raise _GoneError from error


def _heard(channel: Connection) -> None:
    try:
        channel.receive()
    except OSError as error:
        raise _GoneError from error


class _Pairs:
    """Pairs of parts of the shared memory, each for one conversation at a time."""

    def __init__(self, first: int, last: int) -> None:
        self._free = list(range(first, last))
        self._some = threading.Semaphore(last - first)

    @contextmanager
    def taken(self) -> Iterator[tuple[Part, Part]]:
        with self._some:
            pair = self._free.pop()
            try:
                at = 2 * pair * PART_BYTES
                yield Part(at=at, size=PART_BYTES), Part(at=at + PART_BYTES, size=PART_BYTES)
            finally:
                self._free.append(pair)


def main(main_file: int, staging_file: int, listening_file: int) -> None:
    """Work until the worker is gone, then end whatever is under way."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s medley porter: %(message)s", stream=sys.stderr)
    network = Network.from_environment()
    porter = Porter(
        socket.socket(fileno=main_file), Staging(staging_file), socket.socket(fileno=listening_file), network
    )
    _LOG.debug("porter of worker %d", os.getppid())
    porter.run()
    os._exit(0)  # threads may wait for other engines


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
