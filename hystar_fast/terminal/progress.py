"""The progress of long work: bars in a terminal, and a line every five seconds elsewhere and in the log file."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich import progress as rich_progress
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from hystar_fast.terminal.console import Console

Item = TypeVar("Item")
INTERVAL = 5.0  # seconds


class Progress(rich_progress.Progress):
    """Bars in a terminal; without one, a line of each task when it is done and every `INTERVAL` seconds until then.

    The lines are in the log file in both cases (`Console.log_to`).

    Args:
        console: where everything goes.
        transient: remove the bars at the end.
        unit: what is counted; also show how many of it are done in a second, and the time left.
    """

    def __init__(self, console: Console, *, transient: bool = False, unit: str = "") -> None:
        columns: tuple[ProgressColumn, ...] = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            *((_Rate(unit),) if unit else ()),
        )
        super().__init__(*columns, console=console, transient=transient, disable=not console.is_terminal)
        self._lines, self._unit = console, unit
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

    def track(
        self,
        sequence: Iterable[Item],
        total: float | None = None,
        completed: int = 0,
        task_id: TaskID | None = None,
        description: str = "Working...",
        update_period: float = 0.1,
    ) -> Iterator[Item]:
        """Yield the items and count each when it is done; rich counts in a thread that runs in a terminal alone."""
        whole = operator.length_hint(sequence) or None if total is None else total
        if task_id is None:
            task_id = self.add_task(description, total=whole, completed=completed)
        else:
            self.update(task_id, total=whole, completed=completed)
        for item in sequence:
            yield item
            self.advance(task_id)

    def _report_if_done(self, task_id: TaskID) -> None:
        if self._tasks[task_id].finished and task_id not in self._reported:
            self._reported.add(task_id)
            self._say(line_of(self._tasks[task_id], self._unit))

    def _tick(self) -> None:
        while not self._ended.wait(INTERVAL):
            going = [task for task in self.tasks if not task.finished]
            if going:
                self._say(line_of(going[-1], self._unit))

    def _say(self, line: str) -> None:
        if self._lines.is_terminal:
            self._lines.write_log(line)
        else:
            self._lines.print(line)


class _Rate(ProgressColumn):
    """A column such as ``31.2 pictures/s, 2 min left``."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: rich_progress.Task) -> Text:
        return Text(rate_of(task, self._unit))


def line_of(task: rich_progress.Task, unit: str = "") -> str:
    """Return a line such as ``train 30/120, 12 s``, or with a unit ``add 30/120, 12 s, 2.5 pictures/s, 36 s left``."""
    done = "" if task.total is None else f" {task.completed:g}/{task.total:g}"
    parts = [f"{task.description}{done}", f"{task.elapsed or 0:.0f} s", rate_of(task, unit) if unit else ""]
    return ", ".join(part for part in parts if part)


def rate_of(task: rich_progress.Task, unit: str) -> str:
    """Return the rate of a task in the last half minute and the time left; "" while there is none."""
    speed = task.finished_speed or task.speed
    if not speed:
        return ""
    rate = f"{speed:.1f} {unit}/s"
    return rate if task.finished or task.remaining is None else f"{rate}, {duration(task.remaining / speed)} left"


def duration(seconds: float) -> str:
    """Return a time in one unit: ``40 s``, ``12 min``, ``5 h`` or ``3 days``."""
    for least, unit, word in ((48 * 3600, 86400, "days"), (7200, 3600, "h"), (120, 60, "min")):
        if seconds >= least:
            return f"{seconds / unit:.0f} {word}"
    return f"{seconds:.0f} s"
