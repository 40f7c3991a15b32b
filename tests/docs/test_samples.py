"""What the documents show is what the commands say; the README's service is the example."""

from __future__ import annotations

import re

import pytest

from tests.docs.samples import DOCUMENTS, ROOT, regenerated


@pytest.mark.parametrize("document", DOCUMENTS)
def test_samples_are_what_the_commands_say(document):
    assert regenerated(document) == (ROOT / document).read_text(encoding="utf-8"), "run `make samples`"


def test_the_readme_shows_the_example_that_it_plans():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```yaml\n# examples/chat.yaml[^\n]*\n(.*?)```", readme, flags=re.DOTALL)
    written = (ROOT / "examples" / "chat.yaml").read_text(encoding="utf-8")
    assert shown == "".join(line for line in written.splitlines(keepends=True) if not line.startswith("#"))
    assert "-f examples/chat.yaml -c examples/acceleratorclasses.yaml -c examples/performanceprofiles.yaml" in readme
