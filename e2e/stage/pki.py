"""Keys, certificates and kubeconfigs of a cluster that lives for days, made by openssl.

Used by `apiserver` and `cluster`. Knows files and openssl, not what runs.
"""

import base64
import json
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
        certificate = self.folder / f"{name}.crt"
        if certificate.exists():
            return
        subject = "".join(f"/O={group}" for group in identity.groups) + f"/CN={identity.user}"
        request = run(["openssl", "req", "-new", *_new_key(self.path(f"{name}.key")), "-subj", subject])
        extensions = self.folder / f"{name}.extensions"
        names = f"subjectAltName={','.join(alternative_names)}\n" if alternative_names else ""
        extensions.write_text(f"{names}extendedKeyUsage=serverAuth,clientAuth\n")
        sign = ["openssl", "x509", "-req", "-CA", self.path("ca.crt"), "-CAkey", self.path("ca.key")]
        signed = run([*sign, "-CAcreateserial", "-days", _DAYS, "-extfile", str(extensions)], stdin=request)
        certificate.write_text(signed)

    def kubeconfig(self, name: str, identity: Identity, server: str) -> Path:
        """Write `name.kubeconfig` for `identity` at `server` (https://host:port), and return its path."""
        self.issue(name, identity)
        user = {
            "client-certificate-data": _inline(self.folder / f"{name}.crt"),
            "client-key-data": _inline(self.folder / f"{name}.key"),
        }
        cluster = {"server": server, "certificate-authority-data": _inline(self.certificate)}
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(
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
        path.chmod(0o600)
        return path


def _new_key(path: str) -> list[str]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path]


def _inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
