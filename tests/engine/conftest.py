"""What tests of the engine pod share."""

import json

import pytest


@pytest.fixture
def model(tmp_path):
    """A model folder that the stand-in never opens."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps({"file": name}))
    return str(folder)
