"""Training of a row of a reproduced table: from shipped settings, with a line of progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hystar_fast.experiments.embedded_runs import run_folder, trained
from hystar_fast.experiments.experiment_settings import ExperimentSettings
from hystar_fast.methods.interface import Method
from hystar_fast.terminal.console import Console
from hystar_fast.terminal.progress import Progress
from hystar_fast.train.settings import NONE_WORDS


def folder_name(text: str) -> str:
    """Return a text as the name of a folder: other characters than letters and digits become "_".

    >>> folder_name("TKI, start=clip-0")
    'TKI__start_clip_0'
    """
    return "".join(c if c.isalnum() else "_" for c in text)


def data_changes(settings: ExperimentSettings, source: str, seed: int) -> list[str]:
    """Return the changes of shipped settings that make a run one of an experiment on a data set with a seed."""
    config = settings.config()
    return [
        f"model.backbone={config.backbone}",
        f"model.pretrained={config.pretrained or NONE_WORDS['model.pretrained']}",
        f"data.source={source}",
        f"run.seed={seed}",
        f"run.device={settings.run.device}",
    ]


def train_row(label: str, config: str, changes: Sequence[str], folder: Path, console: Console) -> Method:
    """Do what `trained` does in the `run_folder` of a folder, and show the progress under a label."""
    with Progress(console) as progress:
        task = progress.add_task(label, total=None)
        return trained(
            config,
            changes,
            run_folder(folder),
            started=lambda total, _: progress.update(task, total=total),
            progress=lambda done, _: progress.update(task, completed=done),
        )
