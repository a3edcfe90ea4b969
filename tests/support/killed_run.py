"""A training run in a process of its own that is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from hystar_fast.train.settings import Settings
from hystar_fast.train.settings_file import to_toml

ROOT = Path(__file__).resolve().parents[2]
TRAIN = "from hystar_fast.cli.main import app; app()"
NARROW = "import pytest; from tests.support.small_tiny import shrink_tiny; shrink_tiny(pytest.MonkeyPatch()); "


def train_and_kill(settings: Settings, lines: int, *, narrow: bool = False) -> None:
    """Start a run, and kill it (SIGKILL) as soon as its log has `lines` lines.

    It has the backbone of the fixture `narrow_tiny` if `narrow`, as other processes do not see that of this one.
    """
    folder = Path(settings.run.output)
    config, log = folder.parent / "settings.toml", folder / "metrics.jsonl"
    config.write_text(to_toml(settings.to_dict()))
    process = subprocess.Popen([sys.executable, "-c", NARROW * narrow + TRAIN, "train", str(config)], cwd=ROOT)
    until = time.monotonic() + 300
    while not (log.exists() and log.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None and time.monotonic() < until, "the run ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    assert process.wait() < 0, "the run ended before it could be killed"
