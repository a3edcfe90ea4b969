"""Runs of other systems on the embedded drawings: training from shipped settings, unseen subgroups, chance, seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import OWN, CategorySplit
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.interface import Method
from hystar_fast.methods.similarity import Similarity
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.retrieval.definitions import Metric, chance_level
from hystar_fast.retrieval.embed import Embedded
from hystar_fast.retrieval.evaluate import measure_by
from hystar_fast.retrieval.metrics import bootstrap_mean
from hystar_fast.retrieval.results_json import interval_info, to_percent
from hystar_fast.retrieval.zero_shot import number_labels
from hystar_fast.train.checkpoint import Progress, read_checkpoint
from hystar_fast.train.run import ADAPTER, CHECKPOINT, run_training
from hystar_fast.train.settings import read_settings

_SPLITS = {"unseen": "test", "unseen-all": "all"}


def unseen_parts(source: str) -> dict[str, ImageSet]:
    """Return the concepts of the unseen subgroups: "unseen", those of the test split, and "unseen-all", of all splits.

    Args:
        source: "emoji" or "emoji:keywords".
    """
    found = {}
    for name, split in _SPLITS.items():
        images = open_images(source, split)
        found[name] = CategorySplit.of(OWN, images).unseen_part(images)
    return found


def run_folder(folder: Path) -> Path:
    """Return a folder for runs on the packaged weights: with other weights another one, as their runs differ."""
    weights = files("hystar_fast.models").joinpath("assets", "tiny.safetensors").read_bytes()
    return folder.with_name(f"{folder.name}-{hashlib.sha256(weights).hexdigest()[:8]}")


def trained(config: str, changes: Sequence[str], folder: Path, **callbacks: Callable[..., object]) -> Method:
    """Train from shipped settings with changes, or go on where an equal run in the folder has stopped.

    Args:
        config: their name.
        changes: as after ``--set``.
        folder: of the run.
        callbacks: "started" and "progress", as of `run_training`.
    """
    settings = read_settings(config, [*changes, f"run.output={folder}"])
    adapter, checkpoint = folder / ADAPTER, folder / CHECKPOINT
    if adapter.is_dir() and checkpoint.is_file():
        state = Progress(**read_checkpoint(checkpoint)["progress"])
        if state.settings == settings.to_dict() and 0 < settings.steps <= state.step:
            return load_method(adapter)
    run_training(settings, resume=True, **callbacks)
    return load_method(adapter)


def frozen() -> Method:
    """Return the packaged CLIP without training."""
    return create_method("frozen", tiny_config())


def chance(images: ImageSet, queries: Sequence[Any] | None = None) -> float:
    """Return the expected mAP@all of the subgroup of random rankings, in per cent.

    Args:
        images: the gallery is theirs.
        queries: records; by default the gallery's.
    """
    labels = number_labels([record.category for record in (*images.gallery, *(queries or images.gallery))])
    gallery, asked = labels[: len(images.gallery)], labels[len(images.gallery) :]
    relevant = (asked[:, None] == gallery).sum(1)
    return 100 * chance_level(relevant, len(gallery)).mean().item()


def measure_figures(
    queries: Embedded, gallery: Embedded, wanted: Mapping[str, Sequence[str]], similarity: Similarity
) -> dict[str, Tensor]:
    """Return metric -> its value for every query, [n] between 0 and 1.

    Args:
        queries, gallery: as of `measure_by`.
        wanted: "category" or "instance" -> the metrics for which it is relevant.
        similarity: gives the scores.
    """
    found: dict[str, Tensor] = {}
    for by, names in wanted.items():
        metrics = [Metric.parse(name) for name in names]
        values = measure_by(by, queries, gallery, metrics, similarity).values
        found |= {str(metric): values[metric] for metric in metrics}
    return found


def mean_over_seeds(runs: Mapping[int, Mapping[str, Any]], *keys: str) -> Tensor:
    """Return the mean over seeds of the figures found under some keys."""
    found = []
    for run in runs.values():
        value: Any = run
        for key in keys:
            value = value[key]
        found.append(torch.as_tensor(value, dtype=torch.float64))
    return torch.stack(found).mean(0)


def over_seeds(runs: Sequence[Tensor]) -> dict[str, Any]:
    """Return a figure in per cent: its mean over seeds and queries, the interval over queries, and the deviation.

    Args:
        runs: of each seed the values of the same queries between 0 and 1, [n], or [S, n] as `bootstrap_mean` takes
            them; nan where a query has none.

    Returns:
        "value", "low" and "high"; "deviation", the standard deviation over seeds (n - 1), where there are several.

    >>> over_seeds([torch.tensor([0.5, 0.5]), torch.tensor([0.7, 0.7])])
    {'value': 60.0, 'low': 60.0, 'high': 60.0, 'deviation': 14.14}
    """
    values = torch.stack([run.double().reshape(-1, run.shape[-1]) for run in runs])
    means = values.nanmean(2).mean(1).tolist()
    return {**interval_info(bootstrap_mean(values.flatten(0, 1))), **deviation(means)}


def deviation(means: Sequence[float]) -> dict[str, float]:
    """Return "deviation" of the means of seeds, between 0 and 1, in per cent; nothing for one seed."""
    return {"deviation": to_percent(stdev(means))} if len(means) > 1 else {}


def figure_cell(found: Mapping[str, float] | None, digits: int = 1) -> str:
    """Return what `over_seeds` found for a table: "60.0 ±14.1 [58.1, 61.9]"; "–" for nothing."""
    if found is None:
        return "–"
    spread = f" ±{found['deviation']:.{digits}f}" if "deviation" in found else ""
    interval = " [{low:.1f}, {high:.1f}]".format(**found) if "low" in found else ""
    return f"{found['value']:.{digits}f}{spread}{interval}"
