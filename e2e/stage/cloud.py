"""The cloud agent: gives every Node that Karpenter made a real machine, and takes machines away as a cloud does.

Runs as a process of its own (`python -m e2e.stage.cloud`, started by `cluster`). Each pass looks at what is: Nodes,
machines and interruptions (a file each), so that it may be killed at any line and started again.
"""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from e2e.stage import machine, notices, paths
from e2e.stage.api import Api
from e2e.stage.machine import Machine, Site
from e2e.stage.processes import StageError, load, wait_until

_log = logging.getLogger("cloud")
PASS_S = 0.25
HOSTNAME = "kubernetes.io/hostname"
KARPENTER_POOL = "karpenter.sh/nodepool"


@dataclass(frozen=True, slots=True)
class Interruption:
    """A node that goes away at `at` (seconds since the epoch) whatever anybody does, with a notice of `form` before it.

    `noticed` and `died` are when the notice was given and when the power went; None: not yet.
    """

    node: str
    form: notices.Form
    at: float
    noticed: float | None = None
    died: float | None = None

    def save(self) -> None:
        draft = self._file().with_suffix(".new")
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(self._file())

    def forget(self) -> None:
        """Move the record to the history, which `status` shows."""
        history = paths.cloud() / "history"
        history.mkdir(parents=True, exist_ok=True)
        self._file().replace(history / self._file().name)

    def _file(self) -> Path:
        return paths.cloud() / "interruptions" / f"{self.node}.json"


def interruptions(folder: str = "interruptions") -> dict[str, Interruption]:
    """Return what is under way (or `history`), by node."""
    found = {}
    for file in sorted((paths.cloud() / folder).glob("*.json")):
        raw = json.loads(file.read_text())
        found[raw["node"]] = Interruption(**(raw | {"form": notices.Form(raw["form"])}))
    return found


def interrupt(api: Api, node: str, form: notices.Form, after_s: float) -> Interruption:
    """Ask the running agent to take a node away `after_s` seconds after its notice; return when the notice is given."""
    notices.check(api, node, form)
    if node in interruptions():
        raise StageError(f"interrupting {node}: it is being interrupted already; see `python -m e2e.stage status`")
    if load(paths.processes() / "cloud") is None:
        raise StageError("the cloud agent does not run: start it with `python -m e2e.stage up`")
    Interruption(node, form, time.time() + after_s).save()

    def current() -> Interruption | None:
        return (interruptions("history") | interruptions()).get(node)

    wait_until(lambda: (now := current()) is not None and now.noticed is not None, timeout_s=30, what="the notice")
    given = current()
    assert given is not None
    return given


def boot_delay_s() -> float:
    """Return how long a machine takes from its order to its boot; read anew each pass, so that it can be changed."""
    return float(json.loads((paths.cloud() / "settings.json").read_text())["bootDelaySeconds"])


def is_due(node: dict[str, Any], delay_s: float, now: float) -> bool:
    """Say whether a Node that Karpenter made should have its machine by now."""
    created = datetime.fromisoformat(node["metadata"]["creationTimestamp"]).timestamp()
    return "deletionTimestamp" not in node["metadata"] and now >= created + delay_s


class Agent:
    """The loop. Boots and burials run in threads, one per machine at a time.

    `site` is asked at each boot: `up` may have pulled newer images meanwhile.
    """

    def __init__(self, api: Api, site: Callable[[], Site]) -> None:
        self._api = api
        self._site = site
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="machine")
        self._under_way: dict[str, Future[None]] = {}

    def run(self, stopped: threading.Event) -> None:
        """Pass after pass until told to stop; a pass that fails is told and tried again."""
        while not stopped.wait(PASS_S):
            try:
                self.once(time.time())
            except (StageError, OSError) as error:
                _log.warning("pass: %s", error)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def once(self, now: float) -> None:
        """Bring the machines to what Nodes and interruptions ask for at `now` (seconds since the epoch)."""
        # First: a deadline does not wait for a list.
        ending = {name: self._interrupt(each, now) for name, each in interruptions().items()}
        self._collect()
        nodes = {node["metadata"]["name"]: node for node in self._api.items(notices.NODES)}
        machines = machine.known()
        for name, ours in machines.items():
            if ours.karpenter and name not in nodes:
                self._do(name, f"destroying {name}: its Node is gone", partial(machine.destroy, ours))
        delay_s = boot_delay_s()
        for name, node in nodes.items():
            dead = name in ending and ending[name].died is not None
            made_by_karpenter = KARPENTER_POOL in node["metadata"].get("labels", {})
            runs = name in machines and machines[name].runs
            if made_by_karpenter and not dead and not runs and is_due(node, delay_s, now):
                self._do(name, f"booting {name}", partial(self._boot, node))
        for each in ending.values():
            if each.died is not None:
                self._clear_away(each, nodes.get(each.node), machines.get(each.node))

    def _boot(self, node: dict[str, Any]) -> None:
        # A kubelet labels its Node with its host name. That of a Node can be longer than a label may be, so ours keeps
        # the one that Karpenter gave (the NodeClaim's name).
        labels = {HOSTNAME: node["metadata"]["labels"].get(HOSTNAME, node["metadata"]["name"])}
        machine.boot(machine.order(node["metadata"]["name"], karpenter=True, labels=labels), self._site())

    def _interrupt(self, interruption: Interruption, now: float) -> Interruption:
        """Give the notice and cut the power when their time has come; return the interruption as it is now."""
        if interruption.noticed is None:
            notices.post(self._api, interruption.node, interruption.form)
            interruption = replace(interruption, noticed=time.time())
            interruption.save()
            _log.info("notice (%s) for %s", interruption.form, interruption.node)
        if interruption.died is None and now >= interruption.at:
            ours = machine.known().get(interruption.node)
            if ours is not None:
                machine.power_off(ours)
            interruption = replace(interruption, died=time.time())
            interruption.save()
            _log.info("%s is gone", interruption.node)
        return interruption

    def _clear_away(self, interruption: Interruption, node: dict[str, Any] | None, ours: Machine | None) -> None:
        """Remove a dead machine, and its Node as a cloud controller does: once it is no longer Ready."""
        if ours is not None:
            self._do(ours.name, f"removing {ours.name}", partial(machine.destroy, ours))
        if node is None and ours is None:
            interruption.forget()
        elif node is not None and not notices.is_ready(node) and "deletionTimestamp" not in node["metadata"]:
            _log.info("deleting the Node of %s", interruption.node)
            self._api.delete(f"{notices.NODES}/{interruption.node}")

    def _do(self, name: str, what: str, act: Callable[[], None]) -> None:
        if name not in self._under_way:
            _log.info("%s", what)
            self._under_way[name] = self._pool.submit(act)

    def _collect(self) -> None:
        for name, future in list(self._under_way.items()):
            if future.done():
                del self._under_way[name]
                if (error := future.exception()) is not None:
                    _log.error("%s: %s", name, error)


def main() -> None:
    """Run until SIGTERM."""
    from e2e.stage.cluster import api, site  # the composition root: `cluster` starts us

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    Agent(api(), site).run(stopped)


if __name__ == "__main__":
    main()
