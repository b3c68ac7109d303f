"""What the tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_training import small_dataset


@pytest.fixture(scope="session")
def half_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of windows of half an hour: 24 people, two windows each."""
    return small_dataset(tmp_path_factory.mktemp("data") / "half_hours")
