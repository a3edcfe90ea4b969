"""The training loop: step after step of any method, validation, checkpoints and a log."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hystar_fast.data.image_set import ImageSet
from hystar_fast.data.read_ahead import read_ahead
from hystar_fast.methods.interface import Method
from hystar_fast.nn.losses import PairLoss
from hystar_fast.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from hystar_fast.train.contrastive_steps import ContrastiveSteps
from hystar_fast.train.metrics_log import MetricsLog
from hystar_fast.train.pairs import TrainingPairs
from hystar_fast.train.processes import World
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.step_maker import StepMaker


@dataclass(frozen=True)
class CheckpointPolicy:
    """The schedule of a run's validation, checkpoints, log and early stop.

    Attributes:
        checkpoint: the checkpoint file; None writes none.
        checkpoint_every: steps between checkpoints; one is also written after every validation and at the end.
        resume: continue from `checkpoint` if it exists.
        log: opens the metrics log, given the progress of the checkpoint.
        validate: returns the score (larger is better) and other figures of the current method.
        validate_every: steps between validations; there is also one at the end.
        validate_from: the first step with a validation, but for one at the end.
        on_best: called whenever the score is the best so far.
        patience: stop after so many validations without a new best; 0 never stops.
        settings: stored in the checkpoint.
    """

    checkpoint: Path | None = None
    checkpoint_every: int = 50
    resume: bool = False
    log: Callable[[Progress], MetricsLog] | None = None
    validate: Callable[[], tuple[float, dict[str, Any]]] | None = None
    validate_every: int = 0
    validate_from: int = 0
    on_best: Callable[[], object] | None = None
    patience: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


def train(
    method: Method,
    images: ImageSet,
    recipe: Recipe,
    *,
    progress: Callable[[int, float], object] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
) -> list[float]:
    """Train a method on the pairs of a data set.

    Args:
        method: the method to train; it is left in evaluation mode.
        images: the training split.
        recipe: see `Recipe`.
        progress: called after every step with the number of steps done and the loss.
        checkpoint: file written every `checkpoint_every` steps and at the end.
        resume: continue from `checkpoint` if it exists. The recipe must be its own, but for the number of steps of a
            constant schedule, and so must the data.

    Returns:
        The loss of every step.

    Raises:
        ValueError: a recipe that does not fit the method, the data or the checkpoint.
        FloatingPointError: the loss is no longer finite.
    """
    pairs = TrainingPairs(images, recipe.styles, method.resize)
    policy = CheckpointPolicy(None if checkpoint is None else Path(checkpoint), checkpoint_every, resume)
    return fit(method, lambda: pairs, recipe, policy, progress=progress).losses


def fit(
    method: Method,
    open_pairs: Callable[[], TrainingPairs],
    recipe: Recipe,
    policy: CheckpointPolicy,
    *,
    criterion: PairLoss | None = None,
    world: World | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, float], object] | None = None,
) -> Progress:
    """Train a method on pairs as `train` does, with validation, a log and several processes.

    A step depends only on the parameters, the optimiser's state, the seed and its number, so a resumed run makes the
    same steps as an uninterrupted one.

    Args:
        method: the method to train, on `device`; it is left in evaluation mode.
        open_pairs: opens the training pairs; called after everything else has been checked.
        recipe: see `Recipe`.
        policy: see `CheckpointPolicy`.
        criterion: loss of (query, target, mask=None); by default the method's own.
        world: the processes; each has the same method, pairs and recipe. Process 0 writes and validates.
        device: where the pictures go; by default they stay on the CPU.
        progress: called after every step with the number of steps done and the loss.

    Raises:
        ValueError: a recipe that does not fit the method or the data, or a checkpoint of another run.
        FloatingPointError: the loss or a gradient is no longer finite.
    """
    world = world or World()
    maker = ContrastiveSteps(method, open_pairs, recipe, criterion, world, device)
    return run_steps(maker, policy, world=world, progress=progress)


def run_steps(
    maker: StepMaker,
    policy: CheckpointPolicy,
    *,
    world: World | None = None,
    progress: Callable[[int, float], object] | None = None,
) -> Progress:
    """Make the steps of a run, with validation, a log and checkpoints; the method is left in evaluation mode.

    Args:
        maker: makes the steps.
        policy: see `CheckpointPolicy`.
        world: the processes. Process 0 writes and validates.
        progress: called after every step with the number of steps done and the loss.

    Raises:
        ValueError: the data do not fit, or a checkpoint of another run.
        FloatingPointError: a loss or a gradient is no longer finite.
    """
    world = world or World()
    method, steps = maker.method, maker.recipe.steps
    state = Progress(settings=policy.settings)
    if policy.resume and policy.checkpoint is not None and policy.checkpoint.exists():
        state = load_checkpoint(policy.checkpoint, method, maker.optimizers)
    identity = maker.open()
    if state.step:
        _check_identity(identity, state.identity, policy.checkpoint)
    state.identity = identity
    if state.step < steps:
        maker.preload()
    log = None if policy.log is None or not world.is_main else policy.log(state)
    method.train(True)
    batches = _batches(maker, range(state.step, steps))
    try:
        while state.step < steps and not _out_of_patience(state, policy):
            figures = maker.make(state.step, next(batches))
            state.step += 1
            state.losses.append(figures["loss"])
            if log is not None:
                log.write(state.step, "train", figures)
            validated = _validate_if_due(method, state, steps, policy, world, log)
            if policy.checkpoint is not None and (
                validated or state.step % policy.checkpoint_every == 0 or state.step == steps
            ):
                for skipped in world.gather_objects(maker.skipped):
                    state.skipped |= skipped
                if world.is_main:
                    state.log_size, state.log_sha256 = (0, "") if log is None else log.sync()
                    save_checkpoint(policy.checkpoint, method, maker.optimizers, state)
            if progress is not None:
                progress(state.step, figures["loss"])
    finally:
        batches.close()
        if log is not None:
            log.close()
        method.train(False)
    for skipped in world.gather_objects(maker.skipped):
        state.skipped |= skipped
    return state


def _check_identity(identity: dict[str, Any], before: dict[str, Any], checkpoint: Path | None) -> None:
    """Raise ValueError if a run differs from that of its checkpoint in what decides the remaining steps."""
    changed = [
        f"{name} = {value!r} (was {before.get(name)!r})"
        for name, value in identity.items()
        if before.get(name) != value
    ]
    if changed:
        raise ValueError(f"the run must be that of {checkpoint} to resume it, got {'; '.join(changed)}")


def _batches(maker: StepMaker, steps: range) -> Generator[Any]:
    """Yield the batch of every step; a maker that reads ahead prepares the next in a thread while a step runs."""
    yield from read_ahead(maker.prepare, steps, window=2, threads=1) if maker.reads_ahead else map(maker.prepare, steps)


def _validate_if_due(
    method: Method, state: Progress, steps: int, policy: CheckpointPolicy, world: World, log: MetricsLog | None
) -> bool:
    """Validate the method if a validation is due, and save it if it is the best so far; return whether it was due."""
    if policy.validate is None:
        return False
    is_due = policy.validate_every and state.step % policy.validate_every == 0 and state.step >= policy.validate_from
    if state.step != steps and not is_due:
        return False
    score: float = 0.0
    figures: dict[str, Any] = {}
    if world.is_main:
        score, figures = policy.validate()
        if log is not None:
            log.write(state.step, "validation", {"score": score, **figures})
    score = world.broadcast_object(score)
    if state.best is None or score > state.best[0]:
        state.best = (score, state.step)
        bounds = figures.get("interval")
        state.best_interval = None if bounds is None else (bounds["low"], bounds["high"])
        if world.is_main and policy.on_best is not None:
            policy.on_best()
    method.train(True)
    return True


def _out_of_patience(state: Progress, policy: CheckpointPolicy) -> bool:
    if not policy.patience or not policy.validate_every or state.best is None:
        return False
    return (state.step - state.best[1]) // policy.validate_every >= policy.patience
