"""SIGKILL of a server during upserts: nothing that was acknowledged is lost, and the client recovers by itself."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch

from hystar_fast.index.engine import EngineUnavailable
from hystar_fast.index.postgres import PostgresEngine
from tests.support.index_engines import STAMPS, items, units
from tests.support.postgres_server import PostgresServer
from tests.support.served import until

pytestmark = pytest.mark.xdist_group("postgres")
BATCH, KILLS = 20, 6


class Writer(threading.Thread):
    """Writes batch after batch, each again until it is acknowledged."""

    def __init__(self, engine: PostgresEngine) -> None:
        super().__init__(daemon=True)
        self.engine, self.done, self.refused = engine, 0, 0
        self.is_to_stop = False

    def run(self) -> None:
        while not self.is_to_stop:
            first = self.done * BATCH
            try:
                self.engine.upsert(items(BATCH, first), {"adapted": units(BATCH, seed=first)})
            except EngineUnavailable:
                self.refused += 1
                time.sleep(0.01)
            else:
                self.done += 1


def test_postgres_is_killed_while_it_is_written(postgres: PostgresServer):
    chosen = random.Random(0)
    with PostgresEngine.create(postgres.new_uri(), STAMPS) as engine:
        writer = Writer(engine)
        writer.start()
        for _ in range(KILLS):
            time.sleep(chosen.uniform(0.05, 0.25))
            postgres.kill()
            acknowledged, refused = writer.done, writer.refused
            until(lambda before=refused: writer.refused > before, 60)
            postgres.start()
            with PostgresEngine(engine.uri) as reader:
                there = reader.count()
                assert there >= acknowledged * BATCH and there % BATCH == 0, "whole batches"
                assert reader.verify() == []
            start = writer.done
            until(lambda before=start: writer.done > before, 60)  # the same client goes on
        writer.is_to_stop = True
        writer.join()
        assert writer.refused >= KILLS
        assert engine.count() == writer.done * BATCH == len(engine.known()) and engine.verify() == []
        for found, vectors in engine.scan():
            assert [item.id for item in found] == [item.id for item in items(len(found), int(found[0].caption[8:]))]
            first = int(found[0].caption[8:])
            expected = [units(BATCH, seed=seed) for seed in range(first, first + len(found), BATCH)]
            assert torch.equal(vectors["adapted"], torch.cat(expected))
