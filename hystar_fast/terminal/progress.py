"""The progress of long work: bars in a terminal, and a line every five seconds elsewhere and in the log file."""

from __future__ import annotations

import threading
from typing import Any

from rich import progress as rich_progress
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from hystar_fast.terminal.console import Console

INTERVAL = 5.0  # seconds


class Progress(rich_progress.Progress):
    """Bars in a terminal; without one, a line of each task when it is done and every `INTERVAL` seconds until then.

    The lines are in the log file in both cases (`Console.log_to`).

    Args:
        console: where everything goes.
        transient: remove the bars at the end.
    """

    def __init__(self, console: Console, *, transient: bool = False) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        super().__init__(*columns, console=console, transient=transient, disable=not console.is_terminal)
        self._lines = console
        self._reported: set[TaskID] = set()
        self._ended = threading.Event()
        self._clock: threading.Thread | None = None

    def start(self) -> None:
        super().start()
        if self._clock is None:
            self._clock = threading.Thread(target=self._tick, daemon=True)
            self._clock.start()

    def stop(self) -> None:
        self._ended.set()
        if self._clock is not None:
            self._clock.join()
        super().stop()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._report_if_done(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._report_if_done(task_id)

    def _report_if_done(self, task_id: TaskID) -> None:
        if self._tasks[task_id].finished and task_id not in self._reported:
            self._reported.add(task_id)
            self._say(line_of(self._tasks[task_id]))

    def _tick(self) -> None:
        while not self._ended.wait(INTERVAL):
            going = [task for task in self.tasks if not task.finished]
            if going:
                self._say(line_of(going[-1]))

    def _say(self, line: str) -> None:
        if self._lines.is_terminal:
            self._lines.write_log(line)
        else:
            self._lines.print(line)


def line_of(task: rich_progress.Task) -> str:
    """Return a line such as ``train 30/120, 12 s``."""
    done = "" if task.total is None else f" {task.completed:g}/{task.total:g}"
    return f"{task.description}{done}, {task.elapsed or 0:.0f} s"
