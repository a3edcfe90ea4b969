"""Work for processes that a test starts."""

from __future__ import annotations

import os
import time
from pathlib import Path


def sleep_after_writing_pid(mark: str) -> None:
    """Write the id of this process to a file, then sleep for five minutes."""
    Path(mark).write_text(str(os.getpid()))
    time.sleep(300)
