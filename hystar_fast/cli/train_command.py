"""``hystar-fast train``."""

from __future__ import annotations

from collections.abc import Sequence

from hystar_fast.cli.downloads import announce_downloads
from hystar_fast.terminal.console import Console
from hystar_fast.terminal.progress import Progress
from hystar_fast.train.category_data import METRIC, WITHIN_NAME
from hystar_fast.train.name_data import TEXTS_NAME
from hystar_fast.train.run import Trained, run_training
from hystar_fast.train.settings import read_settings

_MEANINGS = {
    "R@1": "% of the queries whose own picture comes first",
    WITHIN_NAME: "% of the queries whose own picture comes first among those of its category",
    str(METRIC): "% average precision on categories that were held out",
    TEXTS_NAME: "% average precision between prompts in styles that never trained; no picture is read",
}
_STYLED = ("hystar", "freestyle")  # read the style network of the configuration


def train_from(config: str, changes: Sequence[str], console: Console, *, resume: bool) -> Trained:
    """Train from a settings file and changes to it, with a progress bar, and print the result."""
    settings = read_settings(config, changes)
    own_network = None if settings.own is None else settings.own.own_network
    if own_network is None:
        announce_downloads(settings.model, console, styled=settings.method in _STYLED)
    with Progress(console) as progress:
        task = progress.add_task("train", total=None)

        def started(steps: int, parameters: dict[str, int]) -> None:
            console.log_to(settings.run.output)
            counts = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
            backbone = own_network or settings.model.backbone
            console.print(f"{settings.method} on {backbone}: {steps} steps; trained parameters: {counts}")
            progress.update(task, total=steps)

        def advance(done: int, loss: float) -> None:
            progress.update(task, completed=done, description=f"train, loss {loss:.3f}")

        trained = run_training(settings, resume=resume, say=console.print, started=started, progress=advance)
    _print_result(trained, console)
    return trained


def _print_result(trained: Trained, console: Console) -> None:
    state = trained.progress
    last = f", loss {state.losses[-1]:.3f}" if state.losses else ""
    best = ""
    if state.best is not None:
        bounds = (
            "" if state.best_interval is None else " [{:.1f}, {:.1f}]".format(*(100 * b for b in state.best_interval))
        )
        found = f"{trained.metric} {100 * state.best[0]:.1f}{bounds} after step {state.best[1]}"
        best = f"; best on validation: {found} ({_MEANINGS[trained.metric]})"
    console.print(f"{state.step} steps{last}{best}; wrote {trained.adapter}")
    if state.skipped:
        first = next(iter(state.skipped.items()))
        line = f"skipped {len(state.skipped)} unreadable pictures, such as {first[0]}: {first[1]}"
        console.print(line)
