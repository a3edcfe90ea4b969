"""An index in PostgreSQL for a single test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from hystar_fast.index.postgres import PostgresEngine
from tests.support.index_engines import STAMPS, items, units

if TYPE_CHECKING:
    from tests.support.postgres_server import PostgresServer


@pytest.fixture
def uri(postgres: PostgresServer) -> str:
    """Return the address of an index that is not there yet."""
    return postgres.new_uri()


@pytest.fixture
def in_postgres(uri: str) -> Iterator[PostgresEngine]:
    """Make an index of twenty items."""
    with PostgresEngine.create(uri, STAMPS) as made:
        made.upsert(items(20), {"adapted": units(20)})
        yield made
