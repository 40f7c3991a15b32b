"""Compiles the stage's Go programs into the cache, one build module per tool; done once per version.

Used by `cli` and `apiserver`. A result appears under its final name only when it is whole, so an interrupted build is
repaired by the next, and two builders at once wait for each other.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from e2e.stage import paths
from e2e.stage.locks import locked
from e2e.stage.processes import StageError, run
from e2e.stage.progress import Board, Say, silent
from e2e.stage.versions import APT_PACKAGES, GO_LANGUAGE, KARPENTER, KUBERNETES, KUBERNETES_TOOL, GoTool

_GO = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
_STAGING = re.compile(r"^\s*(k8s\.io/[a-z-]+) => \./staging", re.MULTILINE)


def karpenter_tool() -> GoTool:
    """Return Karpenter wrapped by our own main."""
    return _own_tool("karpenter", KARPENTER)


def pause_tool() -> GoTool:
    """Return the program that holds a pod's namespaces."""
    return _own_tool("pause", "1")


def own_sources(name: str) -> Path:
    """Return the folder of a Go program of ours."""
    return Path(__file__).with_name(name)


def _own_tool(name: str, version: str) -> GoTool:
    """Describe a program whose sources lie beside this file; its key follows them."""
    digest = hashlib.sha256()
    for source in sorted(own_sources(name).glob("*")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return GoTool(name, f"{version}-{digest.hexdigest()[:12]}", (".",), (name,))


def build(tools: Iterable[GoTool], board: Board) -> None:
    """Compile those of `tools` that the cache lacks, one after the other: each compile uses all cores."""
    for tool in tools:
        if not paths.tool(tool).is_dir():
            with board.task(f"build {tool.name} {tool.version}") as say, locked(tool.key):
                compile_tool(tool, say)


def missing(tools: Iterable[GoTool]) -> list[str]:
    """Return the keys of the tools that are not built."""
    return [tool.key for tool in tools if not paths.tool(tool).is_dir()]


def compile_tool(tool: GoTool, say: Say = silent) -> Path:
    """Compile one tool and return the folder of its binaries."""
    final = paths.tool(tool)
    if final.is_dir():  # somebody else built it while we waited for the lock
        return final
    if shutil.which("go") is None:
        raise StageError(
            f"building {tool.key}: Go is not installed; install Go {GO_LANGUAGE} or newer and run this again"
        )
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if tool.packages == (".",):
        _go_build(own_sources(tool.name), ["-ldflags", "-s -w", "-o", f"{partial}/{tool.name}", "."], say)
        if tool.name == "karpenter":
            _copy_definitions(partial / "crds")
    else:
        module = _module(tool, say)
        flags = ["-ldflags", " ".join(["-s", "-w", *_linker_values(tool)])]
        _go_build(module, [*flags, "-o", f"{partial}/", "tool"], say)
        for package, binary in zip(tool.packages, tool.binaries, strict=True):
            built = partial / compiled_name(package)
            if built.name != binary:
                built.rename(partial / binary)
    partial.rename(final)
    return final


def compiled_name(package: str) -> str:
    """Return the file name that Go gives the program of a package: its last element, a major version left out."""
    *parents, last = package.split("/")
    return parents[-1] if re.fullmatch(r"v\d+", last) and parents else last


def kubernetes_go_mod(upstream: str, version: str) -> str:
    """Return the go.mod that builds Kubernetes from outside.

    `upstream` is its own go.mod, which names the staging modules; here they are required by version.
    """
    tools = "\n".join(f"\t{package}" for package in KUBERNETES_TOOL.packages)
    staging = f"v0.{version.removeprefix('1.')}"
    replaces = "\n".join(f"\t{name} => {name} {staging}" for name in _STAGING.findall(upstream))
    return (
        f"module medley.dev/stage\n\ngo {GO_LANGUAGE}\n\ngodebug default=go{GO_LANGUAGE.rpartition('.')[0]}\n\n"
        f"tool (\n{tools}\n)\n\nrequire k8s.io/kubernetes v{version}\n\nreplace (\n{replaces}\n)\n"
    )


def module_folder(name: str, *, within: Path) -> Path:
    """Return where Go keeps the sources of a module that the module in `within` requires."""
    return Path(run(["go", "-C", str(within), "list", "-m", "-f", "{{.Dir}}", name], env=_GO).strip())


def install_packages(board: Board) -> None:
    """Install the Debian packages that are not there."""
    lacking = [package for package, proof in APT_PACKAGES.items() if not Path(proof).exists()]
    if not lacking:
        return
    if shutil.which("apt-get") is None:
        raise StageError(f"this machine has no apt-get: install {', '.join(lacking)} by hand and run this again")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    with board.task(f"install {', '.join(lacking)}"):
        run(["apt-get", "update", "-q"], env=quiet)
        run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *lacking], env=quiet)


def _module(tool: GoTool, say: Say) -> Path:
    """Return the folder of the build module of a tool, made if need be; go.sum is written last, by `go mod tidy`."""
    folder = paths.cache() / "src" / tool.key
    if (folder / "tidy").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    say("finding its modules")
    go = ["go", "-C", str(folder)]
    if tool.name == "kubernetes":
        (folder / "go.mod").write_text(f"module medley.dev/stage\n\ngo {GO_LANGUAGE}\n")
        run([*go, "mod", "download", f"k8s.io/kubernetes@v{KUBERNETES}"], env=_GO)
        modules = Path(run(["go", "env", "GOMODCACHE"]).strip())
        upstream = (modules / f"k8s.io/kubernetes@v{KUBERNETES}" / "go.mod").read_text()
        (folder / "go.mod").write_text(kubernetes_go_mod(upstream, KUBERNETES))
    else:
        (folder / "go.mod").write_text(f"module medley.dev/stage\n\ngo {GO_LANGUAGE}\n")
        run([*go, "get", "-tool", *(f"{package}@v{tool.version}" for package in tool.packages)], env=_GO)
    run([*go, "mod", "tidy"], env=_GO)
    (folder / "tidy").touch()
    return folder


def _copy_definitions(target: Path) -> None:
    """Keep Karpenter's CRDs beside its binary: Go's module cache may be emptied at any time."""
    target.mkdir()
    upstream = module_folder("sigs.k8s.io/karpenter", within=own_sources("karpenter"))
    for definition in (*upstream.glob("kwok/charts/crds/*.yaml"), *upstream.glob("kwok/apis/crds/*.yaml")):
        shutil.copy(definition, target / definition.name)


def _linker_values(tool: GoTool) -> list[str]:
    """Return the linker flags that tell Kubernetes its own version, which others ask it for."""
    if tool.name != "kubernetes":
        return []
    major, minor, _ = tool.version.split(".")
    values = {"gitVersion": f"v{tool.version}", "gitMajor": major, "gitMinor": minor}
    return [f"-X k8s.io/component-base/version.{name}={value}" for name, value in values.items()]


def _go_build(module: Path, arguments: list[str], say: Say) -> None:
    """Run `go build -v`, telling `say` each package that is compiled."""
    command = ["go", "-C", str(module), "build", "-v", "-trimpath", *arguments]
    lines: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **_GO}) as go:
        assert go.stderr is not None
        for count, line in enumerate(go.stderr, start=1):
            lines.append(line)
            say(f"{count} packages, {line.strip()}")
    if go.returncode != 0:
        raise StageError(f"building {module}: exit {go.returncode}: {''.join(lines)[-2000:]}")
