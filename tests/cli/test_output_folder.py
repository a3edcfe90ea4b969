"""Every command that writes into a folder locks it, and leaves nothing behind where it is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hystar_fast.data.folder_lock import lock_folder
from tests.support.cli import refused

COMMANDS = (
    ("train",),
    ("eval", "--method", "pixels", "--limit", "3"),
    ("embed", "{folder}", "--adapter", "{folder}"),
    ("demo", "--limit", "2", "--steps", "0"),
    ("experiments", "tune"),
    ("experiments", "compare"),
    ("experiments", "reproduce", "table1"),
    ("experiments", "figure", "3"),
    ("experiments", "fewshot"),
)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """Hold the lock of a folder in another thread."""
    folder, held, leave = tmp_path / "locked", threading.Event(), threading.Event()

    def hold() -> None:
        with lock_folder(folder):
            held.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    yield folder
    leave.set()
    thread.join()
    assert not folder.exists()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_a_command_refuses_a_folder_that_another_is_writing(command, locked, tmp_path):
    words = [word.format(folder=tmp_path) for word in command]
    found = refused(*words, "--output", locked)
    assert "error: --output must be a folder that no other command is writing" in found
    assert [path.name for path in locked.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--set", "data.source=nowhere"),
        ("train", "--set", "optim.batch_size=1"),
        ("train", "--set", "model.method=frozen"),
        ("eval", "--adapter", "nowhere"),
        ("eval", "--method", "pixels", "--data", "nowhere"),
        ("eval", "--method", "pixels", "--metrics", "mAP@5"),
        ("embed", "nowhere"),
        ("experiments", "compare", "--set", "training.methods=['a']"),
        ("experiments", "figure", "99"),
        ("experiments", "fewshot", "--set", "data.classes=nowhere"),
    ],
    ids=" ".join,
)
def test_a_refused_command_leaves_no_folder(command, tmp_path):
    refused(*command, "--output", tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
