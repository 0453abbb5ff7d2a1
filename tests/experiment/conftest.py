"""A folder in which a small experiment can be run."""

import pytest
from small_experiment import prepare_workplace


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    return prepare_workplace(tmp_path, monkeypatch)
