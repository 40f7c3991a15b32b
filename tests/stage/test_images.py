from pathlib import Path

import pytest

from e2e.stage import images
from e2e.stage.images import Recipe, key
from e2e.stage.processes import StageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("base", "thin"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "Dockerfile").write_text(f"FROM {name}")
    monkeypatch.setattr(images, "FOLDER", tmp_path)
    return tmp_path


def keys(folder: Path, extra: Path | None = None) -> tuple[str, str]:
    del folder
    inputs = {"extra": extra} if extra else None
    known = {"base": Recipe("base"), "thin": Recipe("thin", "base", inputs)}
    return key(known["base"], known), key(known["thin"], known)


def test_a_changed_base_changes_what_stands_on_it_but_not_the_reverse(folder: Path) -> None:
    base, thin = keys(folder)
    (folder / "thin" / "Dockerfile").write_text("FROM other")
    assert keys(folder)[0] == base
    assert keys(folder)[1] != thin
    changed = keys(folder)[1]
    (folder / "base" / "file").write_text("new")
    assert keys(folder)[0] != base
    assert keys(folder)[1] != changed


def test_inputs_decide_the_key_and_byte_code_does_not(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("1")
    before = keys(folder, source)
    (folder / "thin" / "__pycache__").mkdir()
    (folder / "thin" / "__pycache__" / "x.pyc").write_text("compiled")
    assert keys(folder, source) == before
    source.write_text("2")
    assert keys(folder, source)[1] != before[1]


def test_an_unknown_image_is_refused_with_the_names_there_are(folder: Path) -> None:
    del folder
    with pytest.raises(StageError, match="image nosuch: unknown; the images are"):
        images.reference("nosuch")
