"""What several rooms of the ranker look at, made once."""

from __future__ import annotations

import pytest

from tests.helpers.galleries import Left, leave


@pytest.fixture(scope="session")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """Shards, tables, a ranker and a pruned set."""
    return leave(tmp_path_factory.mktemp("left"))
