"""Keys, certificates and kubeconfigs of a cluster that lives for days, made by openssl.

Used by `apiserver` and `cluster`. Knows files and openssl, not what runs.
"""

import base64
import fcntl
import json
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.stage.processes import run

_DAYS = "30"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client certificate speaks for: a Kubernetes user and its groups."""

    user: str
    groups: tuple[str, ...] = ()


ADMIN = Identity("admin", ("system:masters",))


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority in a folder: `ca.crt`, `ca.key`, the service accounts' `sa.key` and `sa.pub`."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    def path(self, name: str) -> str:
        """Return the path of one file of the folder, as an argument."""
        return str(self.folder / name)

    def establish(self) -> None:
        """Make the authority and the service accounts' key pair, unless they are there."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (self.folder / "sa.pub").exists():  # written last
            return
        request = ["openssl", "req", "-x509", *_new_key(self.path("ca.key")), "-days", _DAYS, "-subj", "/CN=stage"]
        run([*request, "-out", self.path("ca.crt")])
        run(["openssl", "genrsa", "-out", self.path("sa.key"), "2048"])
        public = run(["openssl", "rsa", "-in", self.path("sa.key"), "-pubout"])
        (self.folder / "sa.pub").write_text(public)

    def issue(self, name: str, identity: Identity, *, alternative_names: tuple[str, ...] = ()) -> None:
        """Write `name.crt` and `name.key`, unless they are there.

        `alternative_names` are written as in `DNS:localhost` and `IP:127.0.0.1`.
        """
        with self._locked():
            self._issue(name, identity, alternative_names)

    def _issue(self, name: str, identity: Identity, alternative_names: tuple[str, ...]) -> None:
        certificate = self.folder / f"{name}.crt"
        if certificate.exists():
            return
        subject = "".join(f"/O={group}" for group in identity.groups) + f"/CN={identity.user}"
        request = run(["openssl", "req", "-new", *_new_key(self.path(f"{name}.key")), "-subj", subject])
        extensions = self.folder / f"{name}.extensions"
        names = f"subjectAltName={','.join(alternative_names)}\n" if alternative_names else ""
        extensions.write_text(f"{names}extendedKeyUsage=serverAuth,clientAuth\n")
        sign = ["openssl", "x509", "-req", "-CA", self.path("ca.crt"), "-CAkey", self.path("ca.key")]
        signed = run(
            [*sign, "-set_serial", f"0x{secrets.token_hex(8)}", "-days", _DAYS, "-extfile", str(extensions)],
            stdin=request,
        )
        certificate.write_text(signed)

    def kubeconfig(self, name: str, identity: Identity, server: str, *, lent_by: str | None = None) -> Path:
        """Write `name.kubeconfig` for `identity` at `server` (https://host:port), and return its path.

        With `lent_by`, the certificate is that of somebody who may impersonate: a certificate's common name ends at 64
        characters, and the name of a node may be longer.
        """
        path = self.folder / f"{name}.kubeconfig"
        if path.exists():
            return path
        with self._locked():
            return self._kubeconfig(path, name, identity, server, lent_by)

    def _kubeconfig(self, path: Path, name: str, identity: Identity, server: str, lent_by: str | None) -> Path:
        holder = lent_by or name
        if lent_by is None:
            self._issue(name, identity, ())
        user: dict[str, str | list[str]] = {
            "client-certificate-data": _inline(self.folder / f"{holder}.crt"),
            "client-key-data": _inline(self.folder / f"{holder}.key"),
        }
        if lent_by is not None:
            user |= {"as": identity.user, "as-groups": list(identity.groups)}
        cluster = {"server": server, "certificate-authority-data": _inline(self.certificate)}
        draft = path.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_text(
            json.dumps(  # JSON is YAML
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "stage", "cluster": cluster}],
                    "users": [{"name": identity.user, "user": user}],
                    "contexts": [{"name": "stage", "context": {"cluster": "stage", "user": identity.user}}],
                    "current-context": "stage",
                },
                indent=1,
            )
        )
        draft.replace(path)
        return path

    @contextmanager
    def _locked(self) -> Generator[None, None, None]:
        """Keep two machines that boot at once from making one key twice."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _new_key(path: str) -> list[str]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path]


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
