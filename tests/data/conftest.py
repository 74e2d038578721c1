import pytest


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty working directory, where folders stand for datasets of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PERDURE_DATA", raising=False)
    return tmp_path
