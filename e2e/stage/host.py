"""Settings of the host's kernel that stages need, put back when the last stage goes.

Used by `cluster`. Every kubelet and containerd takes a few dozen inotify instances: the usual limit of 128 ends with
the fourth machine ("too many open files").
"""

import json
from pathlib import Path

from e2e.stage import network, paths

_KERNEL = Path("/proc/sys")
WANTED = {
    "net/ipv4/ip_forward": 1,  # between machines, and from them to the host
    "fs/inotify/max_user_instances": 8192,
    "fs/inotify/max_user_watches": 524288,
}


def settings() -> dict[str, int]:
    """Return the settings as they are."""
    return {name: int((_KERNEL / name).read_text()) for name in WANTED}


def prepare() -> None:
    """Raise what is too low, and remember what it was before the first stage came."""
    if not network.bridges():
        _memory().write_text(json.dumps(settings()))
    for name, value in WANTED.items():
        if int((_KERNEL / name).read_text()) < value:
            (_KERNEL / name).write_text(str(value))


def restore() -> None:
    """Put the settings back, unless another stage needs them."""
    if network.bridges() or not _memory().exists():
        return
    for name, value in json.loads(_memory().read_text()).items():
        (_KERNEL / name).write_text(str(value))
    _memory().unlink()


def _memory() -> Path:
    return paths.cache() / "host-settings.json"
