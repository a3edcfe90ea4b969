"""The examples at the end of every ``--help``."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "hystar-fast train --data DIR",
        "hystar-fast eval --data DIR",
        "hystar-fast embed DIR/photos",
        "hystar-fast search --query DIR/sketches/a.png",
    ),
    "demo": ("hystar-fast demo", "hystar-fast demo --limit 50 --steps 20"),
    "search": (
        "hystar-fast search --query sketch.png --top 10 --picture answers.png",
        "hystar-fast search --text 'a red heart' --json",
    ),
    "info": ("hystar-fast info", "hystar-fast info --json"),
    "train": (
        "hystar-fast train --data DIR",
        "hystar-fast train my.toml --set optim.epochs=10 --output runs/mine",
        "hystar-fast train my.toml --resume",
    ),
    "eval": (
        "hystar-fast eval --data DIR",
        "hystar-fast eval --method frozen --data DIR --split test",
        "hystar-fast eval --adapter runs/experiments/adapters/lora-0",
    ),
    "embed": (
        "hystar-fast embed DIR/photos",
        "hystar-fast embed DIR/photos --adapter runs/mine/adapter --output runs/mine",
    ),
    "experiments": ("hystar-fast experiments compare", "hystar-fast experiments reproduce table4"),
    "experiments tune": ("hystar-fast experiments tune --set training.steps=60",),
    "experiments compare": (
        """hystar-fast experiments compare --set 'training.methods=["hystar", "lora"]'""",
        """hystar-fast experiments compare --set 'training.methods=["hystar+gamma=10"]'""",
    ),
    "experiments reproduce": ("hystar-fast experiments reproduce table1 table4",),
    "experiments figure": ("hystar-fast experiments figure 3 8",),
    "experiments fewshot": ("hystar-fast experiments fewshot --set data.classes=DIR",),
}


def examples(command: str) -> str:
    """Return the examples of a command as the last paragraph of its help, which is not wrapped."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[command])
