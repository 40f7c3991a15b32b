"""Arguments of vLLM that are not the user's to give, and why: refused by the objects and again by the supervisor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

# What the supervisor decides or depends on.
SUPERVISORS: Final[Mapping[str, str]] = {
    "--api-key": "the key comes from the service's Secret",
    "--config": "give the options themselves",
    "--disable-log-stats": "readiness is judged by vLLM's counters",
    "--headless": "it is the supervisor's to decide",
    "--host": "it is the supervisor's to decide",
    "--max-model-len": "use spec.model.maxModelLen",
    "--model": "use spec.model",
    "--pipeline-parallel-size": "the shape decides",
    "--port": "it is the supervisor's to decide",
    "--root-path": "it is the supervisor's to decide",
    "--served-model-name": "use spec.model.servedName",
    "--ssl-ca-certs": "the supervisor speaks TLS for vLLM",
    "--ssl-cert-reqs": "the supervisor speaks TLS for vLLM",
    "--ssl-certfile": "the supervisor speaks TLS for vLLM",
    "--ssl-ciphers": "the supervisor speaks TLS for vLLM",
    "--ssl-keyfile": "the supervisor speaks TLS for vLLM",
    "--tensor-parallel-size": "the shape decides",
    "--tokens-only": "chat is rendered by the engines",
    "--uds": "it is the supervisor's to decide",
    "-pp": "the shape decides",
    "-tp": "the shape decides",
}
# What the operator decides besides: it may put these into an assignment, a user may not.
OPERATORS: Final[Mapping[str, str]] = {
    "--data-parallel-size": "replicas are engines of their own",
    "--kv-transfer-config": "spec.migration decides how the KV cache moves",
    "--revision": "use spec.model.source.hub.revision",
    "-dp": "replicas are engines of their own",
}


def reserved(argument: str, names: Iterable[str]) -> str | None:
    """Return the name among `names` that a word of a command line sets, or None.

    As argparse and vLLM read it: `_` stands for `-`, and any beginning of an option may stand for the option.
    """
    flag = argument.partition("=")[0]
    flag = flag.replace("_", "-") if flag.startswith("--") else flag
    return next((name for name in names if flag == name or (len(flag) > len("--") and name.startswith(flag))), None)
