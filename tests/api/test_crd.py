"""The generated files are current, and what cannot be said in a structural schema is refused."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from medley.api import crd
from medley.api.base import Rule
from medley.api.schema import structural

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("path", "text"), crd.documents(ROOT).items(), ids=lambda value: getattr(value, "name", ""))
def test_a_generated_file_is_current(path, text):
    assert path.read_text(encoding="utf-8") == text, "run `make generate`"


def test_nothing_else_lies_among_the_generated_files():
    wanted = set(crd.documents(ROOT)) - {ROOT / "docs/objects.md"}
    assert {*(ROOT / "crds").iterdir(), *(ROOT / "charts/medley/templates/crds").iterdir()} == wanted


def test_check_names_what_is_stale_and_writes_nothing(tmp_path, capsys):
    assert crd.main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("is not current: run `make generate`") == 11
    assert not list(tmp_path.iterdir())
    assert crd.main(["--root", str(tmp_path)]) == 0
    assert crd.main(["--check", "--root", str(tmp_path)]) == 0


class Union(BaseModel):
    spec: int | list[str]


class Alternatives(BaseModel):
    spec: tuple[int, str]


@pytest.mark.parametrize("kind", [Union, Alternatives])
def test_what_a_structural_schema_cannot_say_is_refused(kind):
    with pytest.raises(ValueError, match="has no place in a structural schema"):
        structural(kind)


def test_a_message_with_values_becomes_an_expression():
    rule = Rule("self.a <= self.b", lambda part: part.a <= part.b, "a {a} is above 100% of b's {b}", ".a")
    assert rule.validation() == {
        "rule": "self.a <= self.b",
        "messageExpression": '"a %s is above 100%% of b\'s %s".format([self.a, self.b])',
        "fieldPath": ".a",
    }
