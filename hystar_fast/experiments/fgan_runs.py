"""Runs of FGAN and of methods beside it on the embedded drawings: training, and figures of every query.

A figure is a tensor [2, n]: of each of n concepts, one row for its picture that asks for texts and one for its text
that asks for pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.open import open_images
from hystar_fast.data.unseen import OWN, CategorySplit
from hystar_fast.methods.adapter_files import load_method
from hystar_fast.methods.fgan.label_similarity import RETRIEVALS, LabelSimilarity
from hystar_fast.methods.interface import Method
from hystar_fast.methods.similarity import Similarity
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.retrieval.definitions import Metric, chance_level, measure
from hystar_fast.retrieval.embed import embed_records, embed_texts
from hystar_fast.retrieval.evaluate import number_labels
from hystar_fast.train.run import ADAPTER, CONFIG, run_training
from hystar_fast.train.settings import read_settings
from hystar_fast.train.settings_file import to_toml

SOURCE = "emoji:keywords"
PARTS = {"unseen": "test", "unseen-all": "all"}  # name -> split: concepts of the unseen subgroups
COSINE = "cosine"
MAP, RECALL = Metric.parse("mAP@all"), Metric.parse("R@1")
FIGURES = {"mAP@all": (MAP, "category"), "R@1": (RECALL, "instance")}  # of the subgroup, and of the own concept


def unseen_parts() -> dict[str, ImageSet]:
    """Return the concepts of the unseen subgroups: those of the test split, and those of all splits."""
    found = {}
    for name, split in PARTS.items():
        images = open_images(SOURCE, split)
        found[name] = CategorySplit.of(OWN, images).unseen_part(images)
    return found


def run_folder(folder: Path) -> Path:
    """Return a folder for runs on the packaged weights: with other weights another one, as their runs differ."""
    weights = files("hystar_fast.models").joinpath("assets", "tiny.safetensors").read_bytes()
    return folder.with_name(f"{folder.name}-{hashlib.sha256(weights).hexdigest()[:8]}")


def trained(config: str, changes: Sequence[str], folder: Path) -> Method:
    """Train from shipped settings with changes, or load what an equal run has left in the folder."""
    settings = read_settings(config, [*changes, f"run.output={folder}"])
    written = folder / CONFIG
    adapter = folder / ADAPTER
    if adapter.is_dir() and written.is_file() and written.read_text() == to_toml(settings.to_dict()):
        return load_method(adapter)
    run_training(settings, resume=True)
    return load_method(adapter)


def frozen() -> Method:
    """Return the packaged CLIP without training."""
    return create_method("frozen", tiny_config())


def figures(method: Method, images: ImageSet) -> dict[str, dict[str, Tensor]]:
    """Return retrieval -> "mAP@all" of the subgroup and "R@1" of the own concept -> [2, n].

    The retrieval is "cosine", or of FGAN each of "joint", "regions" and "labels".
    """
    found = embed_records(method, images, images.gallery, [])
    texts = embed_texts(method, [str(record.caption) for record in found.records])
    if texts is None:
        raise ValueError(f"method must take text, got {method.name!r}")
    labels = {by: number_labels([getattr(r, by) for r in found.records]) for by in ("category", "instance")}
    ways: dict[str, Similarity] = {COSINE: method.similarity}
    if isinstance(method.similarity, LabelSimilarity):
        ways = {name: replace(method.similarity, retrieval=name) for name in RETRIEVALS}
    sides = ((found.vectors, texts.float()), (texts.float(), found.vectors))

    def values(metric: Metric, by: str, similarity: Similarity) -> Tensor:
        found = [measure(*side, labels[by], labels[by], [metric], similarity=similarity) for side in sides]
        return torch.stack([one.values[metric] for one in found])

    return {
        way: {name: values(metric, by, similarity) for name, (metric, by) in FIGURES.items()}
        for way, similarity in ways.items()
    }


def chance(images: ImageSet) -> float:
    """Return the expected mAP@all of the subgroup of random rankings, in per cent."""
    labels = number_labels([record.category for record in images.gallery])
    relevant = (labels[:, None] == labels).sum(1)
    return 100 * chance_level(relevant, len(labels)).mean().item()


def mean_over_seeds(runs: Mapping[int, Mapping[str, Any]], *keys: str) -> Tensor:
    """Return the mean over seeds of a figure [2, n] found under some keys."""
    found = []
    for run in runs.values():
        value: Any = run
        for key in keys:
            value = value[key]
        found.append(torch.as_tensor(value, dtype=torch.float64))
    return torch.stack(found).mean(0)
