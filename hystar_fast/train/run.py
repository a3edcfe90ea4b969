"""A whole training run from its settings: method, data, loss, loop, and the files in its folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hystar_fast.data.folder_lock import lock_folder
from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.whole_files import write_whole
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.device import on_device, select_device
from hystar_fast.methods.hystar_method import HystarMethod
from hystar_fast.methods.interface import Method, count_parameters
from hystar_fast.methods.mean_shift import MeanShift
from hystar_fast.methods.step_trained import StepPlan, StepTrained
from hystar_fast.methods.suite import UNTRAINED, create_method
from hystar_fast.models.backbones import Backbone
from hystar_fast.nn.losses import create_loss
from hystar_fast.retrieval.modality_means import modality_means
from hystar_fast.train.captioned import CaptionedPictures
from hystar_fast.train.category_data import CategoryData, open_categories
from hystar_fast.train.category_pairs import CategoryPairs
from hystar_fast.train.checkpoint import Progress, read_checkpoint
from hystar_fast.train.contrastive_steps import ContrastiveSteps
from hystar_fast.train.data_record import DATA_FILE
from hystar_fast.train.loop import CheckpointPolicy, run_steps
from hystar_fast.train.metrics_log import MetricsLog
from hystar_fast.train.name_data import NameBatches, NameData, open_names
from hystar_fast.train.own_steps import OwnSteps
from hystar_fast.train.paired_batches import PairedBatches
from hystar_fast.train.processes import World, join_world, leave_world
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.settings import Settings
from hystar_fast.train.settings_file import to_toml
from hystar_fast.train.step_maker import StepMaker
from hystar_fast.train.validation import TrainingData, open_training

CHECKPOINT, ADAPTER = "checkpoint.pt", "adapter"
CONFIG, SKIPPED = "config.toml", "skipped.txt"
# Settings that may change when a run is resumed: they do not change the remaining steps, except their number.
_MAY_CHANGE = (
    *("run.output", "run.device", "run.checkpoint_every", "run.patience", "run.tensorboard", "run.wandb"),
    *("optim.steps", "optim.epochs"),
)


@dataclass(frozen=True)
class Trained:
    """The result of a run.

    Attributes:
        method: after the last step.
        progress: the losses, the best validation and the skipped pictures.
        adapter: the adapter folder: the best on the validation split, or the last without one.
        steps: the planned number of steps.
        metric: of the validation.
    """

    method: Method
    progress: Progress
    adapter: Path
    steps: int
    metric: str = "R@1"


def run_training(
    settings: Settings,
    *,
    resume: bool = False,
    say: Callable[[str], object] | None = None,
    started: Callable[[int, dict[str, int]], object] | None = None,
    progress: Callable[[int, float], object] | None = None,
) -> Trained:
    """Train from settings; under torchrun every process calls this, and process 0 writes.

    ``run.output`` gets ``config.toml`` (every setting), ``metrics.jsonl``, ``checkpoint.pt``, ``adapter/`` and, if
    pictures could not be read, ``skipped.txt``.

    Args:
        settings: of the run.
        resume: continue from the checkpoint in the output folder, if there is one.
        say: called with lines about the data, before the model is built.
        started: called before the first step with the number of steps and the trainable parameters by group.
        progress: called after every step with the number of steps done and the loss.

    Raises:
        ValueError: settings that do not fit each other or the data, a folder with another run or that another command
            is writing, a run with more steps done than requested, or a changed schedule.
        FloatingPointError: the loss, a gradient, a parameter or an embedding is no longer finite.
    """
    output = Path(settings.run.output)
    device = select_device(settings.run.device)
    world = join_world(device)
    try:
        with lock_folder(output) if world.is_main else contextlib.nullcontext():
            return _run(settings, output, device, world, resume, say, started, progress)
    finally:
        leave_world()


def _run(
    settings: Settings,
    output: Path,
    device: torch.device,
    world: World,
    resume: bool,
    say: Callable[[str], object] | None,
    started: Callable[[int, dict[str, int]], object] | None,
    progress: Callable[[int, float], object] | None,
) -> Trained:
    before = _earlier(output, settings, resume=resume)
    criterion = create_loss(**settings.loss)
    data = _open(settings)
    if say is not None:
        for note in data.notes:
            say(note)
    method = _method(settings)
    if not isinstance(data, TrainingData):
        stepping, batches = _begin(method, settings, data, device, world)
        epoch = batches.batches_per_epoch
    else:
        epoch = data.items // min(settings.optim.batch_size, data.items) if data.items else 1
    encoder = on_device(method, device)
    if isinstance(method, MeanShift) and isinstance(data, TrainingData):
        return _fit_means(method, encoder, settings, data, world, started)
    recipe = _recipe(settings, method, data.styles, epoch)
    _check_steps(recipe, before, output)
    maker: StepMaker
    if not isinstance(data, TrainingData):
        maker = OwnSteps(stepping, batches, recipe, world=world, device=device)
    else:
        opened = data.pairs
        maker = ContrastiveSteps(method, lambda: opened(encoder), recipe, criterion, world, device)
    adapter = output / ADAPTER
    policy = CheckpointPolicy(
        checkpoint=output / CHECKPOINT,
        checkpoint_every=settings.run.checkpoint_every,
        resume=resume,
        log=lambda state: _log(settings, output, state),
        validate=None if data.score is None else lambda: data.score(encoder),  # type: ignore[misc]
        validate_every=settings.run.validate_every or epoch,
        validate_from=method.scores_from if isinstance(method, StepTrained) else 0,
        on_best=lambda: _save(method, adapter, data),
        patience=settings.run.patience,
        settings=settings.to_dict(),
    )
    if world.is_main:
        write_whole(output / CONFIG, to_toml(settings.to_dict()).encode())
    if started is not None:
        started(recipe.steps, count_parameters(method))
    state = run_steps(maker, policy, world=world, progress=progress)
    if world.is_main and state.best is None:
        _save(method, adapter, data)
    if world.is_main:
        if not isinstance(data, TrainingData) and stepping.converts:
            _add_means(adapter, batches, device)
        _write_skipped(state, output)
    return Trained(method, state, adapter, recipe.steps, data.metric)


def _open(settings: Settings) -> TrainingData | CategoryData | NameData:
    if settings.own is None:
        return open_training(settings.data)
    if settings.own.batching.of == "names":
        return open_names(settings.data, settings.own.batching, selects=settings.own.select != "last")
    return open_categories(settings.data, settings.own.batching)


def _fit_means(
    method: MeanShift,
    encoder: Method,
    settings: Settings,
    data: TrainingData,
    world: World,
    started: Callable[[int, dict[str, int]], object] | None,
) -> Trained:
    """Write the adapter of a method that makes no steps; there is nothing to resume, and so no checkpoint."""
    pairs, output = data.pairs(encoder), Path(settings.run.output)
    skipped = method.fit(pairs.images, pairs.styles)
    state = Progress(skipped=pairs.skipped | {entry.path: entry.reason for entry in skipped})
    if started is not None:
        started(0, {method.name: sum(p.numel() for p in method.trained_parameters().values())})
    if data.score is not None:
        score, figures = data.score(encoder)
        state.best = (score, 0)
        state.best_interval = (figures["interval"]["low"], figures["interval"]["high"])
    if world.is_main:
        write_whole(output / CONFIG, to_toml(settings.to_dict()).encode())
        _save(method, output / ADAPTER, data)
        _write_skipped(state, output)
    return Trained(method, state, output / ADAPTER, 0)


def _add_means(adapter: Path, batches: object, device: torch.device) -> None:
    """Measure the means of the styles with the method that was kept, and write them into its adapter."""
    if isinstance(batches, CaptionedPictures | PairedBatches):
        kept = load_method(adapter)
        kept.style_means = _means(kept, batches.training, device)
        save_method(kept, adapter)


def _means(method: Method, training: ImageSet, device: torch.device) -> dict[str, Tensor]:
    return modality_means(on_device(method, device), training)


def _write_skipped(state: Progress, output: Path) -> None:
    if state.skipped:
        lines = [f"{path}\t{why}\n" for path, why in sorted(state.skipped.items())]
        write_whole(output / SKIPPED, os.fsencode("".join(lines)))


def _save(method: Method, adapter: Path, data: TrainingData | CategoryData | NameData) -> None:
    save_method(method, adapter)
    if data.record is None:
        (adapter / DATA_FILE).unlink(missing_ok=True)
    else:
        data.record.save(adapter)


def _method(settings: Settings) -> Method:
    own = None if settings.own is None else settings.own.to_dict()
    method = create_method(settings.method, settings.model, seed=settings.run.seed, settings=own)
    if settings.method in UNTRAINED:
        raise ValueError(f"model.method must be a method with training, got {settings.method!r}")
    if settings.optim.gradient_checkpointing:
        for module in [part for whole in method.modules for part in whole.modules()]:
            if isinstance(module, Backbone):
                module.gradient_checkpointing = True
    return method


def _begin(
    method: Method, settings: Settings, data: CategoryData | NameData, device: torch.device, world: World
) -> tuple[StepTrained, CategoryPairs | PairedBatches | NameBatches | CaptionedPictures]:
    """Let a method that makes its own steps create what depends on the data; return it, and its batches."""
    if not isinstance(method, StepTrained):
        raise TypeError(f"method must make its own steps to train by category, got {method.name!r}")
    optim, seed = settings.optim, settings.run.seed
    batches = data.batches(method.resize, optim.batch_size, seed)
    prototypes, means = None, None
    styles: tuple[str, ...] = ()
    if isinstance(batches, CaptionedPictures | PairedBatches) and method.converts:
        styles = batches.modalities
        means = partial(_means, method, batches.training, device)
    if isinstance(data, CategoryData) and data.batching.prototypes:
        prototypes = partial(data.prototypes, method.resize, batches.skipped)
    plan = StepPlan(
        len(batches.categories),
        optim.learning_rate,
        optim.chunk_size,
        optim.bf16,
        seed,
        weight_decay=optim.weight_decay,
        names=batches.categories,
        unseen=data.unseen if isinstance(data, NameData) else frozenset(),
        captions=tuple(record.captions[0] for record in data.training.gallery if record.captions),
        prototypes=prototypes,
        styles=styles,
        means=means,
        processes=world,
        epoch=batches.batches_per_epoch,
        steps=settings.steps or optim.epochs * batches.batches_per_epoch,
    )
    method.begin(plan)
    return method, batches


def _recipe(settings: Settings, method: Method, styles: tuple[str, ...], epoch: int) -> Recipe:
    """Return the recipe of a run whose epoch has so many steps."""
    optim = settings.optim
    own = {"static": optim.static_lr, "dynamic": optim.dynamic_lr} if isinstance(method, HystarMethod) else {}
    return Recipe(
        learning_rates={group: own.get(group, optim.learning_rate) for group in method.parameter_groups()},
        steps=settings.steps or optim.epochs * epoch,
        batch_size=optim.batch_size,
        warmup=optim.warmup,
        schedule=optim.schedule,
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
        styles=styles,
        jitter=settings.data.jitter,
        seed=settings.run.seed,
        bf16=optim.bf16,
        chunk_size=optim.chunk_size,
    )


def _log(settings: Settings, output: Path, state: Progress) -> MetricsLog:
    run = settings.run
    return MetricsLog(
        output,
        size=state.log_size,
        sha256=state.log_sha256,
        step=state.step,
        tensorboard=run.tensorboard,
        wandb=run.wandb,
    )


def _check_steps(recipe: Recipe, before: Progress, output: Path) -> None:
    """Raise ValueError if the run in the folder cannot end after the steps of the recipe."""
    if recipe.steps < before.step:
        raise ValueError(
            f"optim.steps or optim.epochs must give at least the {before.step} steps that the run in {output} has "
            f"done, got {recipe.steps}"
        )
    planned = before.identity.get("steps", recipe.steps)
    if planned != recipe.steps:
        raise ValueError(
            f"optim.steps or optim.epochs must give the {planned} steps of the run in {output}, got {recipe.steps}: "
            f"its {recipe.schedule} schedule ends there, and with another end its rates would jump. Train a new run in "
            'another folder; only runs with optim.schedule = "constant" can be made longer'
        )


def _earlier(output: Path, settings: Settings, *, resume: bool) -> Progress:
    """Return the progress of the run in the folder.

    Raises:
        ValueError: these settings would overwrite the run, or continue it with other settings.
    """
    checkpoint = output / CHECKPOINT
    if not checkpoint.exists():
        return Progress()
    if not resume:
        raise ValueError(
            f"run.output must be a folder without a run, got {output}: --resume continues its run; for a new run give "
            f"another folder or delete {checkpoint}"
        )
    progress = Progress(**read_checkpoint(checkpoint)["progress"])
    before = progress.settings
    changed = [
        f"{section}.{key} = {value!r} (was {before.get(section, {}).get(key)!r})"
        for section, entries in settings.to_dict().items()
        for key, value in entries.items()
        if before.get(section, {}).get(key) != value and f"{section}.{key}" not in _MAY_CHANGE
    ]
    if changed:
        raise ValueError(f"settings must be those of the run in {output} to resume it, got {'; '.join(changed)}")
    return progress
