"""Progress without a terminal: a line at least every few seconds, one at the end, and the same lines in the log."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest

from hystar_fast.terminal import progress as module
from hystar_fast.terminal.console import Console, create_console
from hystar_fast.terminal.progress import Progress


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.05)


def lines_of(folder: Path) -> list[str]:
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    return [line[20:] for line in lines]


def test_lines_come_while_nothing_advances_and_when_a_task_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = create_console()
    console.log_to(tmp_path)
    with Progress(console) as progress:
        task = progress.add_task("train [red]", total=3)
        progress.update(task, completed=2)
        time.sleep(0.3)
        progress.advance(task)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) >= 4
    assert {line.partition(",")[0] for line in shown[:-1]} == {"train [red] 2/3"}
    assert shown[-1].startswith("train [red] 3/3, ") and shown.count(shown[-1]) == 1
    assert lines_of(tmp_path) == shown


def test_items_are_counted_while_they_are_worked_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = create_console()
    console.log_to(tmp_path)
    with Progress(console) as progress:
        for item in progress.track(iter("abc"), total=3, description="trials"):
            assert progress.tasks[0].completed == "abc".index(item)
            time.sleep(0.1)
    shown = [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"trials 0/3", "trials 1/3", "trials 2/3"} <= {*shown} and shown[-1] == "trials 3/3"
    assert [line.partition(",")[0] for line in lines_of(tmp_path)] == shown


def test_a_terminal_gets_bars_and_the_log_gets_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=60)
    console.log_to(tmp_path)
    with Progress(console) as progress:
        list(progress.track(range(2), description="runs"))
        time.sleep(0.1)
    assert "━" in stream.getvalue() and "runs 2/2," not in stream.getvalue()
    assert [line for line in lines_of(tmp_path) if line.startswith("runs 2/2, ")]


def test_a_task_without_a_total_says_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(create_console()) as progress:
        progress.add_task("factoring", total=None)
        time.sleep(0.15)
    assert "factoring, 0 s" in capsys.readouterr().out


def test_a_quiet_console_prints_and_logs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = create_console(quiet=True)
    console.log_to(tmp_path / "out")
    with Progress(console) as progress:
        list(progress.track(range(2), description="runs"))
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()


def test_a_log_that_cannot_be_written_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = create_console()
    console.log_to(tmp_path)
    (tmp_path / "log.txt").mkdir()
    console.print("one")
    console.print("two")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "one" and shown[1].startswith("the log is not continued: ") and shown[2:] == ["two"]


def test_with_a_unit_a_line_has_the_rate_and_the_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(create_console(), unit="pictures") as progress:
        task = progress.add_task("add", total=None)
        for done in (1000, 1010, 1020):  # the first thousand was done before
            time.sleep(0.1)
            progress.update(task, completed=done, total=1050)
        time.sleep(0.1)
        progress.update(task, completed=1050)
    shown = capsys.readouterr().out.splitlines()
    found = re.search(r"add 1020/1050, 0 s, (\d+\.\d) pictures/s, 0 s left$", "\n".join(shown), re.MULTILINE)
    assert found is not None and 40 < float(found.group(1)) < 105, shown
    assert re.fullmatch(r"add 1050/1050, 0 s, \d+\.\d pictures/s", shown[-1])


def test_a_terminal_shows_the_rate_beside_the_bar() -> None:
    stream = io.StringIO()
    with Progress(Console(file=stream, force_terminal=True, width=100), unit="pictures") as progress:
        task = progress.add_task("add", total=10_000)
        for done in range(4):
            progress.update(task, completed=10 * done)
            time.sleep(0.05)
    assert re.search(r"\d+\.\d pictures/s, \d+ s left", stream.getvalue())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7300, "2 h"), (3 * 86400, "3 days")]
)
def test_a_duration_is_in_one_unit(seconds: float, text: str) -> None:
    assert module.duration(seconds) == text
