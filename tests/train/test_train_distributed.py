"""Two gloo processes that share a batch compute the gradients of one process, with and without chunks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hystar_fast.data.emoji import load_emoji
from hystar_fast.methods.device import select_device
from hystar_fast.methods.interface import Method
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.nn.losses import create_loss
from hystar_fast.train.loop import CheckpointPolicy, fit
from hystar_fast.train.metrics_log import MetricsLog
from hystar_fast.train.pairs import PairSampler, TrainingPairs
from hystar_fast.train.processes import World, join_world, leave_world
from hystar_fast.train.recipe import Recipe
from hystar_fast.train.step import backward, prepare
from tests.support.processes import in_processes
from tests.support.small_tiny import shrink_tiny
from tests.support.tolerance import relative_error

pytestmark = [
    pytest.mark.usefixtures("narrow_tiny"),
    pytest.mark.xdist_group("distributed"),  # the processes start once, not once a worker
]
WORLD = 2
STYLES = ("sketch", "outline", "text")
CASES = {
    "hystar": ("hystar", "style_nce", 0),
    "hystar in chunks": ("hystar", "style_nce", 3),
    "static, circle, in chunks": ("static", "circle", 3),
    "lora, hard negatives": ("lora", "info_nce_hard", 0),
}
RATES = {"static": 0.02, "dynamic": 0.002}


def recipe_of(chunk_size: int) -> Recipe:
    return Recipe(RATES, steps=3, batch_size=8, bf16=False, chunk_size=chunk_size, seed=2, warmup=0)


def pairs_of(method: Method) -> TrainingPairs:
    return TrainingPairs(load_emoji("train").select(limit=24), STYLES, method.resize)


def gradients(case: str, world: World) -> tuple[float, list[Tensor]]:
    name, loss, chunk_size = CASES[case]
    method = create_method(name, tiny_config(None), parameters=5000)
    method.train(True)
    recipe, pairs = recipe_of(chunk_size), pairs_of(method)
    batch = PairSampler(pairs, 8, seed=2).batch(1)
    inputs = prepare(method, pairs, batch, recipe, 1, world=world)
    value = backward(method, inputs, recipe, criterion=create_loss(loss), world=world)
    parameters = [p for group in method.parameter_groups().values() for p in group]
    world.reduce(parameters)
    return value, [p.grad for p in parameters if p.grad is not None]


def trained(world: World, folder: Path) -> tuple[list[float], list[Tensor]]:
    method = create_method(
        "hystar", tiny_config(None), seed=7 * world.rank
    )  # every process starts from the parameters of process 0
    policy = CheckpointPolicy(
        checkpoint=folder / "checkpoint.pt",
        log=lambda progress: MetricsLog(folder),
        validate=lambda: (float(world.rank), {}),
        validate_every=2,
        on_best=lambda: (folder / "best").write_text(str(world.rank)),
    )
    found = fit(method, lambda: pairs_of(method), recipe_of(3), policy, world=world)
    assert found.best == (0.0, 2)
    return found.losses, [p.detach() for group in method.parameter_groups().values() for p in group]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    shrink_tiny(pytest.MonkeyPatch())  # for the life of this process
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    world = join_world(torch.device("cpu"))
    assert world == World(rank, WORLD)
    results: dict[str, Any] = {case: gradients(case, world) for case in CASES}
    results["trained"] = trained(world, Path(folder) / f"run{rank}")
    results["gathered"] = world.gather(torch.tensor([rank == 0, True]))
    torch.save(results, f"{folder}/{rank}.pt")
    leave_world()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    in_processes(work, (str(folder),), WORLD)
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_one_process(case: str, runs: list[dict[str, Any]]) -> None:
    loss, alone = gradients(case, World())
    for found, shared in (run[case] for run in runs):
        assert found == pytest.approx(loss, rel=1e-5)
        assert len(shared) == len(alone) > 0
        for gradient, wanted in zip(shared, alone, strict=True):
            assert relative_error(gradient, wanted) < 2e-4
    assert all(torch.equal(a, b) for a, b in zip(runs[0][case][1], runs[1][case][1], strict=True))


def test_training_equals_that_of_one_process_and_only_one_process_writes(
    folder: Path, runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    losses, alone = trained(World(), tmp_path)
    for shared_losses, shared in (run["trained"] for run in runs):
        assert shared_losses == pytest.approx(losses, rel=1e-4)
        assert all(relative_error(a, b) < 1e-3 for a, b in zip(shared, alone, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(runs[0]["trained"][1], runs[1]["trained"][1], strict=True))
    assert sorted(path.name for path in (folder / "run0").iterdir()) == ["best", "checkpoint.pt", "metrics.jsonl"]
    assert not (folder / "run1").exists()
    lines = [json.loads(line) for line in (folder / "run0" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["kind"]) for line in lines] == [
        (1, "train"), (2, "train"), (2, "validation"), (3, "train"), (3, "validation")
    ]  # fmt: skip


@pytest.mark.slow
def test_torchrun_runs_the_train_command(tmp_path: Path) -> None:
    changes = ("data.limit=8", "optim.batch_size=4", "optim.steps=2", "model.pretrained=random", "optim.chunk_size=3")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "hystar_fast.cli.main", "train", "emoji"]
    command += [part for change in changes for part in ("--set", change)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "run")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("trained parameters") == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["kind"]) for line in lines] == [(1, "train"), (2, "train"), (2, "validation")]
    assert (tmp_path / "run" / "adapter" / "adapter.safetensors").is_file()


def test_rows_are_gathered_in_the_order_of_ranks(runs: list[dict[str, Any]]) -> None:
    assert all(run["gathered"].tolist() == [True, True, False, True] for run in runs)


def test_an_indivisible_batch_and_a_missing_device_are_rejected() -> None:
    with pytest.raises(ValueError, match="must divide evenly over 2 processes, got 7 pairs"):
        World(0, 2).share(7)
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda, got 'tape'"):
        select_device("tape")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device must be cpu or auto where torch finds no GPU, got 'cuda'"):
            select_device("cuda")
