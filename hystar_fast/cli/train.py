"""Training one adapter from the command line."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from hystar_fast.methods.suite import create_hystar
from hystar_fast.models.config import HystarConfig
from hystar_fast.retrieval.protocol import load_split
from hystar_fast.train.loop import Recipe, train


def train_adapter(
    config: HystarConfig, recipe: Recipe, output: Path, console: Console, *, limit: int | None, resume: bool
) -> None:
    """Train Hystar on the training concepts and write ``adapter/`` and ``checkpoint.pt`` into `output`."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"output must be a folder, but {output} is a file")
    method = create_hystar(config, seed=recipe.seed)
    with Progress(console=console) as progress:
        task = progress.add_task("train", total=recipe.steps)
        losses = train(
            method,
            load_split("train", limit=limit),
            recipe,
            progress=lambda done, loss: progress.update(task, completed=done, description=f"train, loss {loss:.3f}"),
            checkpoint=output / "checkpoint.pt",
            resume=resume,
        )
    method.model.save_pretrained(output / "adapter")
    last = f", loss {losses[-1]:.3f}" if losses else ""
    console.print(f"{len(losses)} steps{last}; wrote {output / 'adapter'}", highlight=False)
