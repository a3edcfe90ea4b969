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
        "hystar-fast search --query sketch.png --text 'a red heart'",
    ),
    "index": (
        "hystar-fast index create runs/index",
        "hystar-fast index add runs/index DIR/photos",
        "hystar-fast index sync runs/index",
    ),
    "index create": (
        "hystar-fast index create runs/index --adapter runs/mine/adapter",
        "hystar-fast index create runs/index --with-frozen --ids content",
    ),
    "index add": (
        "hystar-fast index add runs/index DIR/photos more.jpg",
        "hystar-fast index add runs/index DIR/photos --attributes about.jsonl",
    ),
    "index load": ("hystar-fast index load runs/index shards",),
    "index sync": ("hystar-fast index sync runs/index", "hystar-fast index sync runs/index --dry-run"),
    "index remove": (
        "hystar-fast index remove runs/index --id a.jpg --id b.jpg",
        "hystar-fast index remove runs/index --where 'path^=trips/' --yes",
    ),
    "index search": (
        "hystar-fast index search runs/index --query a.png --text 'a red heart'",
        "hystar-fast index search runs/index --query a.png --where 'year=2024'",
        "hystar-fast index search --server http://localhost:8000 --query a.png",
    ),
    "index reembed": ("hystar-fast index reembed runs/index --adapter runs/mine/adapter",),
    "index switch": ("hystar-fast index switch runs/index",),
    "index drop": ("hystar-fast index drop runs/index 1",),
    "index info": ("hystar-fast index info runs/index",),
    "index accelerate": ("hystar-fast index accelerate runs/index", "hystar-fast index accelerate runs/index --off"),
    "index verify": ("hystar-fast index verify runs/index",),
    "index copy": ("hystar-fast index copy runs/index 'postgresql://db/pictures?index=photos'",),
    "index move": ("hystar-fast index move runs/index /mnt/old/photos /mnt/new/photos",),
    "serve": (
        "hystar-fast serve runs/demo",
        "hystar-fast serve runs/index --port 8080 --allow-writes",
        "hystar-fast serve runs/index --host 0.0.0.0 --token-file tokens",
    ),
    "info": ("hystar-fast info", "hystar-fast info --json"),
    "save-delta": ("hystar-fast save-delta --adapter runs/mine/adapter --output runs/served",),
    "mean-shift": (
        "hystar-fast mean-shift --data DIR",
        "hystar-fast mean-shift --data DIR --adapter runs/mine/adapter",
    ),
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
    "domains": (
        "hystar-fast domains --data pacs:DIR --method frozen",
        "hystar-fast domains --data pacs:DIR --adapter runs/tki/adapter",
        "hystar-fast domains --data pacs:DIR --identify tki:table3",
    ),
    "embed": (
        "hystar-fast embed DIR/photos",
        "hystar-fast embed DIR/photos --adapter runs/mine/adapter --output runs/mine",
        "torchrun --nproc_per_node 2 --no-python hystar-fast embed DIR --shards OUT",
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
