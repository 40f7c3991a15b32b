"""Make the samples of the documents again: every `$ medley ...` in them is run, and what it says put below it.

    python -m tests.docs.samples [--slow]          (make samples)

Indented blocks that begin with `$ medley` are samples. Files that they name are the examples, what the same document
shows before (a YAML block that begins with `# NAME`), what VARIANTS makes of an example, and published data where
MEDLEY_DATA has it: a sample that needs data which are not there is left as it is, and so is one that needs a cluster.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from contextlib import chdir
from functools import partial
from pathlib import Path

from typer.testing import CliRunner

from medley.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/tool.md")
DATA = Path(os.environ.get("MEDLEY_DATA") or ROOT.parent / "shared" / "data")
PUBLISHED = {
    "requests.csv": "requests/azure/AzureLLMInferenceTrace_conv.csv",
    "g4dn.csv": "spot/bamboo/aws-spot-instances-g4dn-xlarge-us-east-1c-2020-11-20-1930-to-2020-11-21-2200.csv",
}
VARIANTS = {
    "poor.yaml": (
        "examples/llmservice-full.yaml",
        (("name: assistant}", "name: thrifty}"), ('maxUSDPerHour: "40"', 'maxUSDPerHour: "5"'), (": 40", ": 4")),
    )
}
_INDENT = "    "
_BLOCK = re.compile(r"^    \$ medley .*\n(?:    .*\n|\n(?=    ))*", re.MULTILINE)
_SHOWN = re.compile(
    r"^```yaml\n# (?P<name>\S+\.yaml).*\n(?P<text>(?:.*\n)*?)```$|^    # (?P<own>\S+\.yaml).*\n(?P<lines>(?:    .*\n)+)",
    re.MULTILINE,
)


def regenerated(document: str, *, slow: bool = False) -> str:
    """Return a document with its samples made again, those that take minutes only where asked for."""
    text = (ROOT / document).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        _laid_out(Path(folder), text)
        with chdir(folder):
            return _BLOCK.sub(partial(_again, slow=slow), text)


def _laid_out(folder: Path, text: str) -> None:
    shutil.copytree(ROOT / "examples", folder / "examples")
    for name, (source, replacements) in VARIANTS.items():
        variant = (folder / source).read_text(encoding="utf-8")
        for old, new in replacements:
            variant = variant.replace(old, new)
        (folder / name).write_text(variant, encoding="utf-8")
    for name, source in PUBLISHED.items():
        if (DATA / source).is_file():
            (folder / name).symlink_to((DATA / source).resolve())
    for found in _SHOWN.finditer(text):
        own = found["lines"] or ""
        shown = found["text"] or "".join(line.removeprefix(_INDENT) for line in own.splitlines(keepends=True))
        (folder / str(found["name"] or found["own"])).write_text(shown, encoding="utf-8")


def _again(block: re.Match[str], *, slow: bool) -> str:
    lines = [line.removeprefix(_INDENT) for line in block[0].splitlines()]
    length = next(number for number, line in enumerate(lines, 1) if not line.endswith("\\"))
    command = shlex.split(" ".join(line.rstrip("\\") for line in lines[:length]).removeprefix("$ "))[1:]
    if "--diff" in command or (not slow and any(name in command for name in VARIANTS)):
        return block[0]
    if any(name in each for name in PUBLISHED for each in command if not Path(name).exists()):
        return block[0]
    result = CliRunner().invoke(main, command, prog_name="medley")
    said = [*lines[:length], *result.stderr.splitlines(), *result.stdout.splitlines()]
    end = "\n" if block[0].endswith("\n\n") else ""
    return "".join(f"{_INDENT}{line}".rstrip() + "\n" for line in said) + end


def write(*, slow: bool) -> int:
    """Write the documents; return how many changed."""
    changed = 0
    for document in DOCUMENTS:
        text = regenerated(document, slow=slow)
        if text != (ROOT / document).read_text(encoding="utf-8"):
            (ROOT / document).write_text(text, encoding="utf-8")
            changed += 1
    return changed


if __name__ == "__main__":
    sys.stdout.write(f"{write(slow='--slow' in sys.argv)} of {len(DOCUMENTS)} documents changed\n")
