"""Fixtures that several tests in this folder use."""

import pytest


@pytest.fixture
def write(tmp_path):
    """Write a text file; return its path."""

    def to_file(content, name="table.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content.encode(encoding))
        return str(path)

    return to_file
