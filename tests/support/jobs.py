"""Work for processes that a test starts."""

from __future__ import annotations

import os
import time
from pathlib import Path


def linger(mark: str) -> None:
    Path(mark).write_text(str(os.getpid()))
    time.sleep(300)
