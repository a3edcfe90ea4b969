"""Training and evaluating one adapter from the command line."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from hystar_fast.cli.report import recall_table, recalls, source, write_json
from hystar_fast.methods.hystar import HystarMethod
from hystar_fast.methods.interface import count_parameters
from hystar_fast.methods.suite import create_hystar
from hystar_fast.models.config import HystarConfig
from hystar_fast.models.hystar import Hystar
from hystar_fast.retrieval.evaluate import evaluate
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


def evaluate_adapter(adapter: Path, split: str, console: Console, *, output: Path | None, limit: int | None) -> None:
    """Print, and write where asked, the recalls of a saved adapter on the "val" or "test" concepts."""
    if split not in ("val", "test"):
        raise ValueError(f"split must be 'val' or 'test', got {split!r}")
    method = HystarMethod(Hystar.from_pretrained(adapter))
    held_out = load_split(split, limit=limit)
    counts = count_parameters(method)
    entry = {
        "parameters": {"trainable": sum(counts.values()), **counts},
        "recall": recalls(evaluate(method, held_out)),
    }
    title = f"R@1 / R@5 (%) over the whole gallery of {len(held_out)} {split} concepts (* hard)"
    console.print(recall_table({"hystar": entry}, title))
    if output is not None:
        write_json(output, {**source(), "split": split, "gallery": len(held_out), **entry})
        console.print(f"wrote {output}")
