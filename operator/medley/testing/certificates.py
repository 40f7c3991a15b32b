"""Certificates for tests: authorities and folders as the operator makes them, and as strangers would.

Used by tests of whatever speaks TLS, by benchmarks and by the soak.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from medley.core.identity import AUTHORITIES_FILE, CERTIFICATE_FILE, PRIVATE_KEY_FILE, SERVICE_FILE, Role
from medley.kube.certificates import KeyPair, new_authority, new_certificate

SERVICE = "models/chat"
_LIFE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Issuer:
    """An authority that issues anything."""

    pair: KeyPair

    @classmethod
    def new(cls) -> Issuer:
        """Make one, valid for a day."""
        return cls(new_authority(datetime.now(UTC), _LIFE))

    def folder(
        self,
        path: Path,
        role: Role,
        *,
        service: str = SERVICE,
        trusted: tuple[Issuer, ...] = (),
        issued: datetime | None = None,
        life: timedelta = _LIFE,
    ) -> Path:
        """Write a role's files as a mounted Secret has them, over those of before in one step; return `path`.

        `trusted`: authorities besides this one. `issued` and `life` make a certificate that is over.
        """
        pair = new_certificate(self.pair, service, role, issued or datetime.now(UTC), life)
        files = {
            AUTHORITIES_FILE: "".join(each.pair.certificate for each in (self, *trusted)),
            CERTIFICATE_FILE: pair.certificate,
            PRIVATE_KEY_FILE: pair.private_key,
            SERVICE_FILE: service,
        }
        write_as_kubelet(path, files)
        return path


def write_as_kubelet(path: Path, files: dict[str, str]) -> None:
    """Write files so that they change together: a new folder, and a link that is swapped."""
    path.mkdir(parents=True, exist_ok=True)
    before = (path / "..data").readlink() if (path / "..data").is_symlink() else None
    version = path / f"..{os.urandom(6).hex()}"
    version.mkdir()
    for name, text in files.items():
        (version / name).write_text(text, encoding="utf-8")
    draft = path / "..data_tmp"
    draft.symlink_to(version.name)
    draft.replace(path / "..data")
    for name in files:
        if not (path / name).is_symlink():
            (path / name).symlink_to(Path("..data") / name)
    if before is not None:
        shutil.rmtree(path / before)
