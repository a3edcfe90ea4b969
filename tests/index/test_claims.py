"""Claims: one holder at a time, dead ones are followed, and no clock of another machine is asked."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from hystar_fast.index.claims import Claim, Claims

BEAT, STOLEN = 0.02, 0.3


def claims(folder: Path) -> Claims:
    return Claims(folder / "claims", BEAT, STOLEN)


def taken(mine: Claims, *names: str) -> Claim:
    """Take a claim that must be free."""
    claim = mine.take(names)
    assert claim is not None
    return claim


def wait_for(mine: Claims, name: str, seconds: float) -> Claim | None:
    end = time.monotonic() + seconds
    while (claim := mine.take([name])) is None and time.monotonic() < end:
        time.sleep(BEAT)
    return claim


def die(claim: Claim) -> None:
    """Let the process of a claim die: it writes no more, and its file stays."""
    claim._ended.set()
    claim._thread.join()


def test_one_process_holds_a_piece_and_others_take_the_next(tmp_path):
    mine, other = claims(tmp_path), claims(tmp_path)
    with taken(mine, "a", "b") as first, taken(other, "a", "b") as second:
        assert (first.name, second.name) == ("a", "b")
        assert mine.take(["a", "b"]) is None
    assert [*(tmp_path / "claims").iterdir()] == []
    with taken(other, "a"):
        pass


def test_a_living_holder_keeps_its_claim_and_shows_its_work(tmp_path):
    mine, other = claims(tmp_path), claims(tmp_path)
    with taken(mine, "a") as claim:
        claim.done = 7
        assert wait_for(other, "a", 3 * STOLEN) is None
        (holder,) = other.holders()
    assert (holder.name, holder.done) == ("a", 7) and holder.process.endswith(f":{os.getpid()}") and holder.seconds > 0


def test_the_claim_of_a_dead_holder_is_stolen_by_one_process_alone(tmp_path):
    mine = claims(tmp_path)
    dead = taken(mine, "a")
    dead.__enter__()
    die(dead)
    start = time.monotonic()
    watchers = [claims(tmp_path) for _ in range(4)]
    found: list[Claim] = []
    threads = [
        threading.Thread(target=lambda w=w: found.extend(filter(None, [wait_for(w, "a", 2 * STOLEN)])))
        for w in watchers
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.8 * STOLEN)
    assert found == [], "not before its time"
    while not found and time.monotonic() - start < 10:
        time.sleep(BEAT)
    with found[0]:
        for thread in threads:
            thread.join()
        assert len(found) == 1 and time.monotonic() - start >= STOLEN
    assert [*(tmp_path / "claims").iterdir()] == [], "the claim of the dead goes with that of its heir"


def test_a_death_is_known_although_there_was_other_work(tmp_path):
    mine, other = claims(tmp_path), claims(tmp_path)
    dead = taken(mine, "b")
    dead.__enter__()
    die(dead)
    with taken(other, "a", "b"):
        time.sleep(1.2 * STOLEN)
    with taken(other, "b"):
        pass


def test_a_heartbeat_of_any_date_is_a_heartbeat(tmp_path):
    """The clock of the holder's machine may be years off, and may run backwards."""
    mine, other = claims(tmp_path), claims(tmp_path)
    with taken(mine, "a"):
        place = tmp_path / "claims" / "a.0"
        for year in range(2 * round(STOLEN / BEAT)):
            os.utime(place, (10**9 - 10**7 * year,) * 2)
            assert other.take(["a"]) is None
            time.sleep(BEAT)
    dead = taken(mine, "b")
    dead.__enter__()
    die(dead)
    os.utime(tmp_path / "claims" / "b.0", (4 * 10**9,) * 2)  # far in the future
    stolen = wait_for(other, "b", 10)
    assert stolen is not None
    with stolen:
        pass


def test_a_holder_that_only_slept_takes_nothing_from_its_heir(tmp_path):
    mine, other = claims(tmp_path), claims(tmp_path)
    asleep = taken(mine, "a")
    asleep.__enter__()
    die(asleep)
    heir = wait_for(other, "a", 10)
    assert heir is not None
    with heir:
        asleep.__exit__(None, None, None)
        assert claims(tmp_path).take(["a"]) is None, "that of the heir stands"


def test_of_two_that_see_a_free_piece_one_gets_it(tmp_path, monkeypatch):
    """Both have listed the folder before either created a file in it; a network file system may show an old list."""
    mine, other = claims(tmp_path), claims(tmp_path)
    monkeypatch.setattr(Claims, "_last", lambda self: {})
    with taken(mine, "a"):
        assert other.take(["a"]) is None
        with taken(other, "a", "b") as second:
            assert second.name == "b"


def test_a_claim_that_cannot_be_read_yet_is_one(tmp_path):
    """Its holder has created the file, and has not written into it."""
    mine, other = claims(tmp_path), claims(tmp_path)
    claim = taken(mine, "a")
    assert other.take(["a"]) is None and other.holders() == []
    with claim:
        assert len(other.holders()) == 1
