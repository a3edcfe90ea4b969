"""The training loop: a batch of pairs a step, its gradients, and what is kept of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW

from hystar_fast.methods.interface import Method
from hystar_fast.nn.losses import PairLoss
from hystar_fast.retrieval.protocol import StyledConcepts
from hystar_fast.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from hystar_fast.train.log import MetricsLog
from hystar_fast.train.optim import parameter_groups, rate_factor, set_rates
from hystar_fast.train.pairs import PairImages, Pairs, PairSampler
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.step import Inputs, backward, prepare
from hystar_fast.train.world import World


@dataclass(frozen=True)
class Keeping:
    """What is kept of a run, and when the validation split is asked.

    Attributes:
        checkpoint: the file; None keeps none.
        checkpoint_every: steps from one to the next; there is one after every validation and at the end, too.
        resume: go on from `checkpoint` if it exists.
        log: opens the metrics log, given the progress it goes on from.
        validate: gives the score (larger is better) and other figures of the method as it is now.
        validate_every: steps from one validation to the next; there is one at the end, too.
        keep_best: called whenever the score is larger than ever before.
        patience: ends the run after so many validations without a new best; 0 never does.
        settings: stored in the checkpoint.
    """

    checkpoint: Path | None = None
    checkpoint_every: int = 50
    resume: bool = False
    log: Callable[[Progress], MetricsLog] | None = None
    validate: Callable[[], tuple[float, dict[str, Any]]] | None = None
    validate_every: int = 0
    keep_best: Callable[[], object] | None = None
    patience: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


def train(
    method: Method,
    concepts: StyledConcepts,
    recipe: Recipe,
    *,
    progress: Callable[[int, float], object] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
) -> list[float]:
    """Train a method on pairs of the concepts.

    Args:
        method: what to train; it is left in evaluation mode.
        concepts: training concepts.
        recipe: see `Recipe`.
        progress: called after every step with the number of steps done and the loss.
        checkpoint: file written every `checkpoint_every` steps and at the end.
        resume: go on from `checkpoint` if it exists.

    Returns:
        The loss of every step.

    Raises:
        ValueError: a recipe that does not fit the method or the data.
        FloatingPointError: the loss is not finite any more.
    """
    keeping = Keeping(None if checkpoint is None else Path(checkpoint), checkpoint_every, resume)
    return fit(
        method, lambda: PairImages.of(method, concepts, recipe.styles), recipe, keeping, progress=progress
    ).losses


def fit(
    method: Method,
    pairs: Callable[[], Pairs],
    recipe: Recipe,
    keeping: Keeping,
    *,
    criterion: PairLoss | None = None,
    world: World | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, float], object] | None = None,
) -> Progress:
    """Train a method on pairs: what `train` does, on any data, with validation, a log and several processes.

    A step depends on the parameters, the optimiser's state, the seed and its number alone, so a run that is resumed
    makes the steps it would have made.

    Args:
        method: what to train, on `device`; it is left in evaluation mode.
        pairs: opens the pairs, once what can be checked before has been.
        recipe: see `Recipe`.
        keeping: see `Keeping`.
        criterion: loss of (query, target, mask=None); by default the method's own.
        world: the processes; each has the same method, pairs and recipe. Process 0 writes and validates.
        device: where the pictures go; by default they stay where they are loaded.
        progress: called after every step with the number of steps done and the loss.

    Raises:
        ValueError: a recipe that does not fit the method or the data, or a checkpoint of another run.
        FloatingPointError: the loss or a gradient is not finite any more.
    """
    world = world or World()
    if method.begins_with_its_first_batch and (world.size > 1 or recipe.chunk_size):
        raise ValueError(
            f"method {method.name!r} begins with its whole first batch: train it in one process and without chunk_size"
        )
    groups = parameter_groups(method.parameter_groups(), recipe.learning_rates, recipe.weight_decay)
    if not groups:
        raise ValueError(f"method {method.name!r} has nothing to train")
    trainable = [p for group in groups for p in group["params"]]
    optimizer = AdamW(groups, fused=trainable[0].device.type in ("cpu", "cuda"))
    state = Progress(settings=keeping.settings)
    if keeping.resume and keeping.checkpoint is not None and keeping.checkpoint.exists():
        state = load_checkpoint(keeping.checkpoint, method, optimizer)
    world.spread(trainable)
    data = pairs()
    sampler = PairSampler(data, recipe.styles, recipe.batch_size, recipe.seed)
    log = None if keeping.log is None or not world.writes else keeping.log(state)
    method.train(True)
    batches = _batches(
        lambda step: prepare(method, data, sampler.batch(step), recipe, step, world=world, device=device),
        range(state.step, recipe.steps),
        ahead=data.reads_files,
    )
    try:
        while state.step < recipe.steps and not _waited(state, keeping):
            step = state.step
            inputs = next(batches)
            set_rates(optimizer, rate_factor(recipe.schedule, step, recipe.steps, recipe.warmup))
            optimizer.zero_grad(set_to_none=True)
            loss = backward(method, inputs, recipe, criterion=criterion, world=world)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss of {method.name!r} is {loss} at step {step}: lower its learning rates"
                )
            world.reduce(trainable)
            norm = float(torch.nn.utils.clip_grad_norm_(trainable, recipe.clip_norm or math.inf))
            if not math.isfinite(norm):
                raise FloatingPointError(f"the gradient of {method.name!r} is {norm} at step {step}, its loss {loss}")
            optimizer.step()
            state.step += 1
            state.losses.append(loss)
            if log is not None:
                rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
                log.write(state.step, "train", {"loss": loss, "gradient_norm": norm, "learning_rate": rates})
            validated = _validated(method, state, recipe, keeping, world, log)
            if keeping.checkpoint is not None and (
                validated or state.step % keeping.checkpoint_every == 0 or state.step == recipe.steps
            ):
                for skipped in world.collect(data.skipped):
                    state.skipped |= skipped
                if world.writes:
                    state.log_size = 0 if log is None else log.secure()
                    save_checkpoint(keeping.checkpoint, method, optimizer, state)
            if progress is not None:
                progress(state.step, loss)
    finally:
        batches.close()
        if log is not None:
            log.close()
        method.train(False)
    for skipped in world.collect(data.skipped):
        state.skipped |= skipped
    return state


def _batches(make: Callable[[int], Inputs], steps: range, *, ahead: bool) -> Generator[Inputs]:
    """The inputs of every step; `ahead` makes those of the next one in a thread while a step runs."""
    if not ahead:
        yield from map(make, steps)
        return
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(make, step) for step in steps[:1]]
        for step in steps:
            inputs = coming.pop().result()
            coming += [reader.submit(make, following) for following in steps[step - steps.start + 1 :][:1]]
            yield inputs


def _validated(
    method: Method, state: Progress, recipe: Recipe, keeping: Keeping, world: World, log: MetricsLog | None
) -> bool:
    """Ask the validation split if it is time to, and keep the method if it is the best so far."""
    if keeping.validate is None:
        return False
    if state.step != recipe.steps and not (keeping.validate_every and state.step % keeping.validate_every == 0):
        return False
    score: float = 0.0
    figures: dict[str, Any] = {}
    if world.writes:
        score, figures = keeping.validate()
        if log is not None:
            log.write(state.step, "validation", {"score": score, **figures})
    score = world.agree(score)
    if state.best is None or score > state.best[0]:
        state.best = (score, state.step)
        bounds = figures.get("interval")
        state.best_interval = None if bounds is None else (bounds["low"], bounds["high"])
        if world.writes and keeping.keep_best is not None:
            keeping.keep_best()
    method.train(True)
    return True


def _waited(state: Progress, keeping: Keeping) -> bool:
    if not keeping.patience or not keeping.validate_every or state.best is None:
        return False
    return (state.step - state.best[1]) // keeping.validate_every >= keeping.patience
