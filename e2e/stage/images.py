"""Container images, built by buildah from `images/` and kept in the stage's registry; each is built once per content.

Used by `cluster` and `cli`. An image's key is a hash of its Dockerfile, its build context and its base's key, so
that a reference never means two things and nothing is rebuilt without need.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from e2e.stage import paths
from e2e.stage.addresses import REGISTRY, REGISTRY_ADDRESS
from e2e.stage.build import pause_tool
from e2e.stage.processes import StageError, run
from e2e.stage.progress import Board, Say
from e2e.stage.versions import COREDNS_TOOL

FOLDER = paths.REPOSITORY / "images"
DEBIAN_SUITE = "bookworm"
DEBIAN_PACKAGES = ("ca-certificates", "libgomp1", "libnuma1", "python3", "python3-pip", "python3-venv")
_CERTIFICATES = Path("/etc/ssl/certs")
_PIP_CONFIGURATION = Path("/etc/pip.conf")

Fill = Callable[[Path, Say], None]
"""Puts what an image needs besides its own folder into the build context."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one image is made.

    `inputs` are the files whose content decides the key (name in the context -> file), `constants` whatever else does;
    `fill` makes what is not a file yet, from these alone. `own_folder_on_top`: the Dockerfile's folder is
    the top of the context; else it lies under `images/NAME/`.
    """

    name: str
    base: str | None = None
    inputs: Mapping[str, Path] | None = None
    fill: Fill | None = None
    constants: tuple[str, ...] = ()
    own_folder_on_top: bool = True

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    def content(self) -> dict[str, Path]:
        """Return every file that decides what the image holds, by its name in the context."""
        prefix = "" if self.own_folder_on_top else f"images/{self.name}/"
        own = {f"{prefix}{file.relative_to(self.folder)}": file for file in _files(self.folder)}
        return own | dict(self.inputs or {})


def recipes() -> dict[str, Recipe]:
    """Return every image of the stage, bases first."""
    checkout = {
        name: paths.REPOSITORY / name for name in ("constraints.txt", "pyproject.toml", "README.md", "LICENSE")
    } | {str(file.relative_to(paths.REPOSITORY)): file for file in _files(paths.REPOSITORY / "operator")}
    ours = [
        Recipe(name, "python-base", checkout, fill_distribution, own_folder_on_top=False)
        for name in ("operator", "router", "engine")
    ]
    return {
        recipe.name: recipe
        for recipe in (
            Recipe("pause", None, {"pause": paths.program(pause_tool(), "pause")}),
            Recipe("coredns", None, {"coredns": paths.program(COREDNS_TOOL, "coredns")}),
            Recipe("python-base", None, None, fill_root_file_system, (DEBIAN_SUITE, *DEBIAN_PACKAGES)),
            Recipe("vllm-cpu", "python-base"),
            *ours,
        )
        if (recipe.folder / "Dockerfile").exists()
    }


def key(recipe: Recipe, known: Mapping[str, Recipe], content: Mapping[str, Path] | None = None) -> str:
    """Return the first twelve digits of the hash of everything that decides what the image holds.

    `content` says where the files are (default: where they are at home).
    """
    digest = hashlib.sha256(repr((recipe.name, recipe.constants)).encode())
    if recipe.base is not None:
        digest.update(key(known[recipe.base], known).encode())
    for name, file in sorted((recipe.content() if content is None else content).items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def reference(name: str) -> str:
    """Return the name under which pods ask for an image as the checkout would build it now."""
    known = recipes()
    if name not in known:
        raise StageError(f"image {name}: unknown; the images are {', '.join(known)}")
    return tagged(name, key(known[name], known))


def tagged(name: str, digest: str) -> str:
    """Return the reference of an image whose key is known."""
    return f"{REGISTRY}/medley/{name}:{digest}"


def build(names: Iterable[str], board: Board) -> dict[str, str]:
    """Build those images whose content changed, with their bases; return name -> reference."""
    known, references = recipes(), {}
    for name in names:
        wanted = reference(name)  # says no to an unknown name before anything is built
        references[name] = wanted if is_pushed(name, wanted) else _ensure(known[name], known, board)
    return references


def push(references: Mapping[str, str], board: Board) -> None:
    """Push images that the registry lacks; the registry must be up."""
    for name, wanted in references.items():
        if not is_pushed(name, wanted):
            with board.task(f"push {name}"):
                repository = wanted.removeprefix(REGISTRY)
                _buildah("push", "--quiet", "--tls-verify=false", wanted, f"docker://{REGISTRY_ADDRESS}{repository}")


def is_pushed(name: str, wanted: str) -> bool:
    """Say whether the registry's storage holds the reference."""
    tags = registry_storage() / "docker/registry/v2/repositories/medley" / name / "_manifests/tags"
    return (tags / wanted.rpartition(":")[2] / "current" / "link").exists()


def registry_storage() -> Path:
    """Return where the registry keeps its blobs; it outlives `down`, since the push of the engine takes a minute."""
    return paths.cache() / "registry"


def fill_distribution(context: Path, _: Say) -> None:
    """Put medley's wheel into `dist/`, made from the copy of the sources in the context; the sources then go."""
    builder = ["uv", "build", "--wheel"] if shutil.which("uv") else ["python3", "-m", "build", "--wheel"]
    run([*builder, "--out-dir", str(context / "dist"), str(context)])
    for source in ("operator", "pyproject.toml", "README.md", "LICENSE", "dist/.gitignore"):
        if (context / source).is_dir():
            shutil.rmtree(context / source)
        else:
            (context / source).unlink(missing_ok=True)


def fill_root_file_system(context: Path, say: Say) -> None:
    """Put a minimal Debian with Python into `rootfs.tar`."""
    root = context / "rootfs"
    say(f"debootstrap {DEBIAN_SUITE}")
    bootstrap = ["debootstrap", "--variant=minbase", f"--include={','.join(DEBIAN_PACKAGES)}", DEBIAN_SUITE, str(root)]
    mirror = os.environ.get("MEDLEY_DEBIAN_MIRROR")
    run(["unshare", "--mount", "--propagation", "private", *bootstrap, *([mirror] if mirror else [])])
    for leftover in (
        "var/cache/apt",
        "var/lib/apt/lists",
        "var/log",
        "usr/share/doc",
        "usr/share/locale",
        "usr/share/man",
    ):
        shutil.rmtree(root / leftover, ignore_errors=True)
        (root / leftover).mkdir()
    run(
        [
            "tar",
            "--create",
            "--numeric-owner",
            f"--file={context}/rootfs.tar",
            f"--directory={root}",
            "--exclude=./dev/*",
            ".",
        ]
    )
    shutil.rmtree(root)


def _ensure(recipe: Recipe, known: Mapping[str, Recipe], board: Board) -> str:
    """Have the image in buildah's storage, its base first; return its reference."""
    wanted = tagged(recipe.name, key(recipe, known))
    if wanted in _built():
        return wanted
    base = None if recipe.base is None else _ensure(known[recipe.base], known, board)
    with board.task(f"image {recipe.name}") as say, tempfile.TemporaryDirectory(prefix="medley-image-") as folder:
        context = Path(folder)
        content = recipe.content()
        copies = {name: context / name for name in content}
        for name, file in content.items():
            copies[name].parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copies[name])
        # Of what was copied: somebody may be editing the checkout.
        tag = tagged(recipe.name, key(recipe, known, copies))
        if recipe.fill is not None:
            recipe.fill(context, say)
        dockerfile = context / ("Dockerfile" if recipe.own_folder_on_top else f"images/{recipe.name}/Dockerfile")
        say("buildah")
        options = ["--isolation", "chroot", "--layers", "--network", "host", "--format", "oci", "--pull-never"]
        base_argument = [] if base is None else [f"--build-arg=BASE={base}"]
        where = ["--tag", tag, "--file", str(dockerfile), str(context)]
        _buildah("build", *options, *_machine_configuration(), *base_argument, *where)
    return tag


def _machine_configuration() -> list[str]:
    """Return the options that lend the build this machine's certificates and pip configuration, read-only."""
    lent = []
    if _CERTIFICATES.is_dir():
        lent += ["--volume", f"{_CERTIFICATES}:{_CERTIFICATES}:ro"]
        lent += ["--build-arg", f"SSL_CERT_FILE={_CERTIFICATES / 'ca-certificates.crt'}"]
    if _PIP_CONFIGURATION.exists():
        lent += ["--volume", f"{_PIP_CONFIGURATION}:{_PIP_CONFIGURATION}:ro"]
    return lent


def _built() -> set[str]:
    """Return the references that buildah's storage holds."""
    return set(_buildah("images", "--format", "{{.Name}}:{{.Tag}}").split())


def _buildah(*arguments: str) -> str:
    """Run buildah on a storage of its own, in a mount namespace of its own so that no mount of it stays."""
    storage = paths.cache() / "buildah"
    storage.mkdir(parents=True, exist_ok=True)
    where = ["--root", f"{storage}/root", "--runroot", f"{storage}/run", "--storage-driver", "overlay"]
    return run(["unshare", "--mount", "--propagation", "private", "buildah", *where, *arguments])


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
