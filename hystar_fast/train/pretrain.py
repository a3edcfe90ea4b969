"""Pretrain the tiny backbone: ``python -m hystar_fast.train.pretrain --cache DIR --output DIR``.

Symmetric InfoNCE (paper, Eq. 3) between two views of a concept and between each view and its caption. Two views are
drawings from different families where the concept has several, each through random geometric and photometric changes
(`augment`). The run checkpoints every few minutes and resumes from its checkpoint.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import typer
from open_clip.transformer import PatchDropout
from safetensors.torch import save
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from hystar_fast.data.whole_files import write_whole
from hystar_fast.models.tiny import VOCABULARY, TinyTokenizer, create_tiny
from hystar_fast.retrieval.results_json import write_json
from hystar_fast.train.checkpoint import read_checked, write_checked
from hystar_fast.train.pretrain_data import Drawings, build_drawings

# Share of a batch drawn from: emoji concepts, icons drawn by several families, icons drawn by one.
_MIXTURE = (0.35, 0.45, 0.20)


def train_tokenizer(captions: list[str], path: Path) -> None:
    """Train byte-pair encoding on the pretraining captions only; two ids are reserved for start and end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=VOCABULARY - 3, initial_alphabet=alphabet, show_progress=False)
    )
    write_whole(path, tokenizer.to_str(pretty=True).encode())


def sample_pairs(drawings: Drawings, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Draw rows of `drawings.images` for two views of `size` different concepts, and their captions."""
    emoji = drawings.emoji_count()
    several = np.array([len(g) > 1 for g in drawings.groups])
    is_emoji = np.arange(len(drawings.groups)) < emoji
    pools = [np.flatnonzero(is_emoji), np.flatnonzero(~is_emoji & several), np.flatnonzero(~is_emoji & ~several)]
    counts = [round(size * share) for share in _MIXTURE[:2]]
    counts.append(size - sum(counts))
    chosen = np.concatenate([rng.choice(pool, n, replace=False) for pool, n in zip(pools, counts, strict=True)])
    first, second = np.empty(size, np.int64), np.empty(size, np.int64)
    for i, group in enumerate(chosen):
        families = drawings.groups[group]
        a, b = rng.choice(len(families), 2, replace=False) if len(families) > 1 else (0, 0)
        first[i], second[i] = rng.choice(families[a]), rng.choice(families[b])
    return first, second, [drawings.captions[i] for i in chosen]


def augment(images: Tensor) -> Tensor:
    """Transform images at random (affine, tint, grey, inverted, posterised, edges): uint8 [n, 3, 64, 64] to [-1, 1].

    Low-resolution views are excluded because the demo evaluates them.
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(n, *shape).uniform_(low, high)

    def chosen(probability: float) -> Tensor:
        return (uniform(0, 1, 1, 1, 1) < probability).float()

    x = images.float().div(255)
    angle, scale = uniform(-0.2, 0.2), uniform(0.85, 1.25)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([cos, -sin, uniform(-0.12, 0.12), sin, cos, uniform(-0.12, 0.12)], dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, [n, 3, *x.shape[-2:]], align_corners=False)
    x = 1 - F.grid_sample(1 - x, grid, align_corners=False)  # the outside is white

    grey = x.mean(dim=1, keepdim=True)
    edge_x = F.pad(grey[..., :, 1:] - grey[..., :, :-1], (0, 1))
    edge_y = F.pad(grey[..., 1:, :] - grey[..., :-1, :], (0, 0, 0, 1))
    edges = 1 - (edge_x.square() + edge_y.square()).sqrt().mul(uniform(1.5, 5.0, 1, 1, 1)).clamp(max=1)
    kind = uniform(0, 1, 1, 1, 1)
    x = torch.where(kind < 0.2, edges.expand_as(x), torch.where(kind < 0.4, grey.expand_as(x), x))
    ink, paper = uniform(0, 0.6, 3, 1, 1), uniform(0.75, 1, 3, 1, 1)
    x = torch.lerp(x, ink + (paper - ink) * x, chosen(0.35))
    mix = torch.eye(3) + uniform(-0.15, 0.15, 3, 3)
    x = torch.einsum("nchw,ndc->ndhw", x, mix) * uniform(0.8, 1.2, 1, 1, 1) + uniform(-0.1, 0.1, 1, 1, 1)
    x = torch.lerp(x, (x.clamp(0, 1) * 2).round() / 2, chosen(0.12))
    x = torch.lerp(x, 1 - x, chosen(0.12))
    return x.clamp(0, 1).mul(2).sub(1)


def info_nce(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE of L2-normalised rows (Eq. 3 of the paper in both directions)."""
    logits = scale * a @ b.T
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _optimizer(model: open_clip.CLIP, lr: float) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def export(model: open_clip.CLIP, path: Path) -> None:
    """Write the weights in half precision, in one move."""
    write_whole(path, save({name: value.detach().half().contiguous() for name, value in model.state_dict().items()}))


def schedule(step: int, steps: int) -> float:
    """Return the share of the rate: warm-up of 200 steps, constant, linear to zero over the last quarter."""
    return min(1.0, (step + 1) / 200, max(0.0, (steps - step) / (steps / 4)))


def pretrain(
    cache: Annotated[Path, typer.Option(help="Folder for the icon families and the rendered drawings.")],
    output: Annotated[Path, typer.Option(help="Folder for the weights, tokenizer, log and checkpoint.")],
    steps: int = 2000,
    batch: Annotated[int, typer.Option(help="Concepts a step.")] = 192,
    lr: float = 1e-3,
    patch_dropout: Annotated[float, typer.Option(help="Share of patches dropped until the last tenth.")] = 0.4,
    seed: int = 0,
    checkpoint_minutes: float = 3.0,
    stop_after: Annotated[int | None, typer.Option(help="Stop at this step; a later call continues.")] = None,
) -> None:
    """Train the tiny backbone and write tiny.safetensors, tiny_tokenizer.json and pretrain.json."""
    output.mkdir(parents=True, exist_ok=True)
    drawings = build_drawings(cache)
    images = torch.from_numpy(drawings.images).permute(0, 3, 1, 2)
    tokenizer_path = output / "tiny_tokenizer.json"
    if not tokenizer_path.exists():
        train_tokenizer(drawings.captions, tokenizer_path)
    tokenizer = TinyTokenizer(tokenizer_path)
    torch.manual_seed(seed)
    model = create_tiny(None, tokenizer=tokenizer)[0].train()
    whole_image = model.visual.patch_dropout
    optimizer = _optimizer(model, lr)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": []}
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        saved = read_checked(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    last_save = time.monotonic()
    last = steps if stop_after is None else min(steps, stop_after)
    for step in (bar := tqdm(range(state["step"], last), initial=state["step"], total=steps, desc="pretrain")):
        started = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step, steps)
        torch.manual_seed(seed * steps + step)
        model.visual.patch_dropout = PatchDropout(patch_dropout) if step < 0.9 * steps else whole_image
        first, second, captions = sample_pairs(drawings, batch, np.random.default_rng([seed, step]))
        views = augment(images[np.concatenate([first, second])])
        # On CPUs the backward of the flash kernel takes half a step at 40 to 65 tokens; the plain products do not.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            embedded = model.encode_image(views)
            text = model.encode_text(tokenizer(captions))
        a, b = F.normalize(embedded.float(), dim=-1).chunk(2)
        t = F.normalize(text.float(), dim=-1)
        scale = model.logit_scale.exp().clamp(max=100)
        loss_images, loss_text = info_nce(a, b, scale), (info_nce(a, t, scale) + info_nce(b, t, scale)) / 2
        optimizer.zero_grad(set_to_none=True)
        (loss_images + loss_text).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state["step"] = step + 1
        state["seconds"] += time.monotonic() - started
        if step % 25 == 0:
            row = [step, round(state["seconds"]), loss_images.item(), loss_text.item()]
            state["losses"].append(row)
            bar.set_postfix(images=f"{row[2]:.3f}", text=f"{row[3]:.3f}")
        if time.monotonic() - last_save > 60 * checkpoint_minutes or state["step"] == last:
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
            write_checked(checkpoint, content)
            export(model, output / "tiny.safetensors")
            last_save = time.monotonic()
    recipe = {"seed": seed, "steps": steps, "batch": batch, "lr": lr, "patch_dropout": patch_dropout}
    measured = {"hours": state["seconds"] / 3600, "losses": state["losses"], "drawings": drawings.counts}
    write_json(output / "pretrain.json", {**recipe, **measured})


if __name__ == "__main__":
    typer.run(pretrain)
