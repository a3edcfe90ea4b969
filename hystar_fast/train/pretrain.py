"""Pretrain the tiny backbone: ``python -m hystar_fast.train.pretrain --cache DIR --output DIR``.

Symmetric InfoNCE (paper, Eq. 3) between two views of a concept and between each view and its caption, and the shape of
the unchanged drawing, predicted from each view (`shape_loss`). Two views are drawings from different families where the
concept has several, each changed at random (`make_views`).

The run checkpoints every few minutes and resumes from its checkpoint. The learning rate is constant until the last
quarter of the steps, so a run can be cut short: called again with fewer ``--steps`` it decays from where it is, best
with 4/3 of the steps done. The exported weights are a moving average, usable at any moment. ``OMP_WAIT_POLICY=passive``
in the environment makes a step several times faster on a CPU that other programs use too.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from safetensors.torch import save
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from tqdm import tqdm

from hystar_fast.data.whole_files import write_whole
from hystar_fast.models.tiny import VOCABULARY, TinyTokenizer, build_tiny
from hystar_fast.retrieval.results_json import write_json
from hystar_fast.train.checkpoint import read_checked, write_checked
from hystar_fast.train.pretrain_data import CLIPART, ICON, Drawings, build_drawings
from hystar_fast.train.pretrain_shapes import shape_loss, shapes
from hystar_fast.train.pretrain_towers import Weights, choose_patches, encode_images, encode_texts
from hystar_fast.train.pretrain_validation import Validation
from hystar_fast.train.pretrain_views import make_views

# Share of a batch drawn from: emoji concepts, icons drawn by several families, icons drawn by one, clip art alone.
_MIXTURE = (0.32, 0.38, 0.15, 0.15)
_DECAY = 0.25  # of the steps, at their end
_WHOLE_IMAGES = 0.1  # of the steps, at their end, see all patches
_AVERAGE = 0.999


def train_tokenizer(captions: list[str], path: Path) -> None:
    """Train byte-pair encoding on the pretraining captions only; two ids are reserved for start and end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=VOCABULARY - 3, initial_alphabet=alphabet, show_progress=False)
    )
    write_whole(path, tokenizer.to_str(pretty=True).encode())


class Sampler:
    """Draw batches of different concepts from `drawings`, a fixed share from each kind of concept."""

    def __init__(self, drawings: Drawings) -> None:
        self._drawings = drawings
        several = np.array([len(group) > 1 for group in drawings.groups])
        emoji = np.array([not key.startswith(ICON) for key in drawings.keys])
        clipart = np.array([names == [CLIPART] for names in drawings.families])
        alone = ~emoji & ~several
        self._pools = [np.flatnonzero(p) for p in (emoji, ~emoji & several, alone & ~clipart, alone & clipart)]

    def __call__(self, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return rows of `Drawings.images` for two views of each of `size` concepts, and their captions."""
        counts = [round(size * share) for share in _MIXTURE[1:]]
        counts.insert(0, size - sum(counts))
        pairs = zip(self._pools, counts, strict=True)
        chosen = np.concatenate([rng.choice(pool, count, replace=False) for pool, count in pairs])
        first, second = np.empty(size, np.int64), np.empty(size, np.int64)
        for i, concept in enumerate(chosen):
            families = self._drawings.groups[concept]
            a, b = rng.choice(len(families), 2, replace=False) if len(families) > 1 else (0, 0)
            first[i], second[i] = rng.choice(families[a]), rng.choice(families[b])
        return first, second, [self._drawings.captions[concept] for concept in chosen]


def info_nce(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE of L2-normalised rows (Eq. 3 of the paper in both directions)."""
    logits = scale * a @ b.T
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def compute_losses(
    weights: Weights, views: Tensor, tokens: Tensor, kept: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss between views, that between views and captions, and the embeddings of the views [2 n, D].

    The arithmetic is in bfloat16, losses and embeddings are in float32.

    Args:
        weights: float32 parameters by the names of `open_clip.CLIP`.
        views: [2 n, 3, H, W], the first views of n concepts and then the second ones.
        tokens: int64 [n, T].
        kept: the patches to see, from `choose_patches`.
    """
    rounded = {name: value.bfloat16() for name, value in weights.items()}
    embedded = encode_images(rounded, views, kept).float()
    a, b = F.normalize(embedded, dim=-1).chunk(2)
    t = F.normalize(encode_texts(rounded, tokens).float(), dim=-1)
    scale = weights["logit_scale"].exp().clamp(max=100)
    return info_nce(a, b, scale), (info_nce(a, t, scale) + info_nce(b, t, scale)) / 2, embedded


def schedule(step: int, steps: int) -> float:
    """Return the share of the rate: warm-up of 200 steps, constant, linear to zero over the last quarter."""
    return min(1.0, (step + 1) / 200, max(0.0, (steps - step) / (steps * _DECAY)))


class _Run:
    """The state of a run: everything that its checkpoint holds."""

    def __init__(self, layers: int, lr: float, seed: int, device: str, mean_shape: Tensor) -> None:
        torch.manual_seed(seed)
        self.model = build_tiny(layers).train().to(device)
        self.mean_shape = mean_shape
        self.shape_head = nn.Linear(self.model.visual.proj.shape[1], len(mean_shape)).to(device)  # not exported
        self.weights = dict(self.model.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.weights.items()}
        matrices = [p for p in self.weights.values() if p.ndim >= 2]
        vectors = [p for p in self.weights.values() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
            {"params": list(self.shape_head.parameters()), "weight_decay": 0.1},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
        self.progress: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": [], "curve": []}

    def update(self, loss: Tensor, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        share = max(1 - _AVERAGE, 9 / (10 + self.progress["step"]))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.weights.values()], share)

    def save(self, path: Path) -> None:
        states = {"model": self.model.state_dict(), "shape_head": self.shape_head.state_dict()}
        states["optimizer"] = self.optimizer.state_dict()
        write_checked(path, {**states, "average": self.average, "progress": self.progress})

    def load(self, path: Path) -> None:
        saved = read_checked(path)
        self.model.load_state_dict(saved["model"])
        self.shape_head.load_state_dict(saved["shape_head"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for name, value in saved["average"].items():
            self.average[name].copy_(value)
        self.progress = saved["progress"]


def export(weights: Weights, path: Path) -> None:
    """Write weights in half precision, in one move."""
    write_whole(path, save({name: value.detach().half().cpu().contiguous() for name, value in weights.items()}))


def pretrain(
    cache: Annotated[Path, typer.Option(help="Folder for the downloads and the rendered drawings.")],
    output: Annotated[Path, typer.Option(help="Folder for the weights, tokenizer, log and checkpoint.")],
    steps: Annotated[int, typer.Option(help="Fewer than before on a resumed run: the rate decays from here.")] = 10500,
    batch: Annotated[int, typer.Option(help="Concepts a step, two views each.")] = 192,
    lr: float = 1e-3,
    layers: Annotated[int, typer.Option(help="Blocks of the image tower.")] = 8,
    patch_dropout: Annotated[float, typer.Option(help="Share of patches dropped until the last tenth.")] = 0.4,
    seed: int = 0,
    device: str = "cpu",
    checkpoint_minutes: float = 3.0,
    validate_views: Annotated[int, typer.Option(help="Views between two rows of validation.jsonl.")] = 100_000,
    stop_after: Annotated[int | None, typer.Option(help="Stop at this step; a later call continues.")] = None,
) -> None:
    """Train the tiny backbone; write tiny.safetensors, tiny_tokenizer.json, validation.jsonl and pretrain.json."""
    output.mkdir(parents=True, exist_ok=True)
    drawings = build_drawings(cache)
    images = torch.from_numpy(drawings.images).permute(0, 3, 1, 2).to(device)
    tokenizer_path = output / "tiny_tokenizer.json"
    if not tokenizer_path.exists():
        train_tokenizer(drawings.captions, tokenizer_path)
    tokenizer, sample, validation = TinyTokenizer(tokenizer_path), Sampler(drawings), Validation()
    run = _Run(layers, lr, seed, device, shapes(images[:: max(1, len(images) // 4000)].float() / 255).mean(dim=0))
    patch = run.model.visual.conv1.kernel_size[0]
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        run.load(checkpoint)
    progress, last_save = run.progress, time.monotonic()
    last = steps if stop_after is None else min(steps, stop_after)
    validate_steps = max(1, round(validate_views / (2 * batch)))
    for step in (bar := tqdm(range(progress["step"], last), initial=progress["step"], total=steps, mininterval=10)):
        started = time.monotonic()
        torch.manual_seed(seed * 1_000_003 + step)
        first, second, captions = sample(batch, np.random.default_rng([seed, step]))
        drawn = images[torch.from_numpy(np.concatenate([first, second])).to(device)]
        views = make_views(drawn)
        kept = choose_patches(views, patch, patch_dropout if step < (1 - _WHOLE_IMAGES) * steps else 0)
        *contrastive, embedded = compute_losses(run.weights, views, tokenizer(captions).to(device), kept)
        losses = [*contrastive, shape_loss(run.shape_head(embedded), drawn.float() / 255, run.mean_shape)]
        run.update(torch.stack(losses).sum(), lr * schedule(step, steps))
        progress["step"] = step + 1
        progress["seconds"] += time.monotonic() - started
        if step % 25 == 0:
            found = [round(loss.item(), 4) for loss in losses]
            progress["losses"].append([step, round(progress["seconds"]), *found])
            bar.set_postfix(zip(("images", "text", "shape"), found, strict=True))
        if progress["step"] % validate_steps == 0 or progress["step"] == steps:
            row = {"step": step + 1, "views": 2 * batch * (step + 1), "hours": progress["seconds"] / 3600}
            progress["curve"].append({**row, **validation(run.average, tokenizer)})
            lines = "".join(json.dumps(row) + "\n" for row in progress["curve"])
            write_whole(output / "validation.jsonl", lines.encode())
        if time.monotonic() - last_save > 60 * checkpoint_minutes or progress["step"] == last:
            run.save(checkpoint)
            export(run.average, output / "tiny.safetensors")
            last_save = time.monotonic()
    recipe = {"seed": seed, "steps": steps, "batch": batch, "lr": lr, "layers": layers, "patch_dropout": patch_dropout}
    measured = {"hours": progress["seconds"] / 3600, "losses": progress["losses"], "curve": progress["curve"]}
    data = {"drawings": drawings.counts, "near_duplicates": drawings.near_duplicates}
    write_json(output / "pretrain.json", {**recipe, **measured, **data})


if __name__ == "__main__":
    typer.run(pretrain)
