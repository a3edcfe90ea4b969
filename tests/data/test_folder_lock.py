"""The lock on an output folder: who is refused, and what is left behind."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hystar_fast.data.folder_lock import lock_folder

HOLD = """
import sys, time
from hystar_fast.data.folder_lock import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    process = holder(tmp_path / "run")
    try:
        for spelling in (tmp_path / "run", tmp_path / "x" / ".." / "run"):
            with pytest.raises(ValueError, match=rf"which process {process.pid} on .* has locked: wait until it ends"):
                lock_folder(spelling).__enter__()
        with lock_folder(tmp_path / "other"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (tmp_path / "run" / ".0123456789ab.partial").write_bytes(b"half of a checkpoint")
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"kept")
    with lock_folder(tmp_path / "run"):  # SIGKILL left the file .lock, and no lock
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "metrics.jsonl"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_a_folder_that_stays_empty_is_removed_and_one_that_was_there_is_not(tmp_path):
    with pytest.raises(KeyError), lock_folder(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with lock_folder(tmp_path / "empty"), lock_folder(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()
    with lock_folder(tmp_path / "c" / "d"):
        (tmp_path / "c" / "d" / "result").touch()
    assert (tmp_path / "c" / "d" / "result").exists()


def test_what_a_running_command_writes_in_a_folder_inside_is_kept(tmp_path):
    for name in ("adapter", "adapters/lora-0", "running"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / ".0.partial").touch()
    (tmp_path / "running" / ".lock").touch()
    with lock_folder(tmp_path):
        assert [path.parent.name for path in tmp_path.rglob(".*.partial")] == ["running"]


def test_another_thread_is_refused_and_the_same_one_is_not(tmp_path):
    refused = []

    def take() -> None:
        try:
            lock_folder(tmp_path).__enter__()
        except ValueError as error:
            refused.append(str(error))

    with lock_folder(tmp_path):
        with lock_folder(tmp_path):
            pass
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert len(refused) == 1 and "output must be a folder that no other command is writing" in refused[0]


def test_a_file_is_no_folder_and_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="output must be a folder, got the file"), lock_folder(tmp_path / "file"):
        pass

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match=r"the file system of .*/out has no locks"), lock_folder(tmp_path / "out"):
        pass
