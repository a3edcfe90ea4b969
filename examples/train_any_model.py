"""Put FastSVDLinear into a pretrained model and train one number for each singular value.

The model is an image tower that knows nothing of hystar_fast. It learns the 8 groups of emoji from their outlines,
which its pretraining never saw: first with a linear classifier alone, then with the singular values of its MLPs too.

    python examples/train_any_model.py --steps 60
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import hystar_fast as hf
from hystar_fast.data.emoji import load_emoji
from hystar_fast.models.tiny import NORMALISE, RESIZE, create_tiny


def outlines(split: str, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outlines of a split, normalised, and the number of the group of each."""
    drawings = load_emoji(split, ["outline"], seen_only=False, category="group")
    records = drawings.of_style("outline")
    pictures = torch.stack([NORMALISE(RESIZE(drawings.read(record))) for record in records])
    return pictures, torch.tensor([names.index(str(record.category)) for record in records])


def train(tower: nn.Module, head: nn.Module, pictures: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """Train what is not frozen; offsets have the scale of singular values, so their rate is far above the head's."""
    offsets = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    groups = [{"params": head.parameters(), "lr": 3e-3}, {"params": offsets, "lr": 5e-2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for _ in range(steps):
        rows = torch.randint(len(pictures), (32,))
        loss = nn.functional.cross_entropy(head(tower(pictures[rows])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def accuracy(tower: nn.Module, head: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of right answers in per cent."""
    return 100 * (head(tower(pictures)).argmax(1) == labels).float().mean().item()


def main(steps: int) -> dict[str, float]:
    """Train both ways and return the accuracies on the test drawings."""
    names = sorted({str(record.category) for record in load_emoji("train", category="group").records})
    training, test = outlines("train", names), outlines("test", names)
    found = {}
    for name in ("head alone", "head and offsets"):
        torch.manual_seed(0)
        tower = create_tiny()[0].visual.requires_grad_(False)
        if name == "head and offsets":
            replaced = hf.inject(tower, ["mlp.c_fc", "mlp.c_proj"])
            offsets = sum(parameter.numel() for parameter in tower.parameters() if parameter.requires_grad)
            print(f"replaced {len(replaced)} layers; {offsets:,} offsets to train")
        head = nn.Linear(192, len(names))
        train(tower, head, *training, steps)
        found[name] = accuracy(tower, head, *test)
        print(f"{name}: {found[name]:.1f} % of {len(test[0])} test outlines right")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="training steps of 32 drawings (default: %(default)s)")
    main(parser.parse_args().steps)
