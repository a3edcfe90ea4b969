"""Training with DistributedDataParallel and with FSDP2 in two gloo processes equals training in one process."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from hystar_fast.nn.attention import SVDAttention
from hystar_fast.nn.fast_svd_linear import FastSVDLinear
from hystar_fast.nn.hypernetwork import Hypernetwork
from tests.support.processes import in_processes
from tests.support.tolerance import relative_error

pytestmark = pytest.mark.xdist_group("distributed")  # one worker starts the processes, once
WORLD, STEPS, BATCH = 2, 3, 6


class Adapted(nn.Module):
    """Hypernetwork, modulated attention, and static layers of full and of truncated rank."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.hypernetwork = Hypernetwork(5, 8)
        self.attention = SVDAttention.from_mha(nn.MultiheadAttention(8, 2)).requires_grad_(False)
        self.full = FastSVDLinear.from_linear(nn.Linear(8, 11))
        self.truncated = FastSVDLinear.from_linear(nn.Linear(11, 8), rank=3)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = x.to(self.full.u.dtype)
        if self.recompute:
            y = checkpoint(self.attention, x, self.hypernetwork(z), use_reentrant=False)
        else:
            y = self.attention(x, self.hypernetwork(z))
        y += x  # in place: FSDP2's hook on the output must survive it
        return self.truncated(self.full(y).relu_())


def create(dtype: torch.dtype, recompute: bool = False) -> Adapted:
    torch.manual_seed(0)
    model = Adapted(recompute)
    for module in (model.attention, model.full, model.truncated):
        module.to(dtype)
    return model


def train(model: nn.Module, part: slice) -> list[Tensor]:
    """Train on this part of each batch for a few steps, and return the parameters."""
    generator = torch.Generator().manual_seed(1)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    for _ in range(STEPS):
        x, z, target = (torch.randn(BATCH, *shape, generator=generator) for shape in ((4, 8), (5,), (4, 8)))
        optimiser.zero_grad()
        F.mse_loss(model(x[part], z[part]).float(), target[part]).backward()
        optimiser.step()
    return [whole(parameter) for parameter in trained]


def whole(parameter: Tensor) -> Tensor:
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def work(rank: int, folder: str) -> None:
    """Train in one of the processes, which start at the same time with one empty SVD cache."""
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    warnings.simplefilter("error", UserWarning)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    dist.barrier()
    part = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    results = {"ddp": train(DistributedDataParallel(create(torch.float32)), part)}
    results["ddp recomputing"] = train(DistributedDataParallel(create(torch.float32, recompute=True)), part)
    mesh = init_device_mesh("cpu", (WORLD,))
    for name, dtype in (("fsdp", torch.float32), ("fsdp bfloat16", torch.bfloat16)):
        model = create(dtype)
        for module in (model.hypernetwork, model.attention, model.full, model.truncated, model):
            fully_shard(module, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())  # the factors too
        results[name] = train(model, part)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    folder = tmp_path_factory.mktemp("distributed")
    in_processes(work, (str(folder),), WORLD)
    files = list((Path(folder) / "cache").rglob("*"))
    assert sum(file.suffix == ".safetensors" for file in files) == sum(file.is_file() for file in files) == 3
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize(
    ("run", "dtype", "limit"),
    [
        ("ddp", torch.float32, 1e-5),
        ("ddp recomputing", torch.float32, 1e-5),
        ("fsdp", torch.float32, 1e-5),
        ("fsdp bfloat16", torch.bfloat16, 1e-2),
    ],
)
def test_two_processes_train_as_one_does(
    runs: list[dict[str, list[Tensor]]], run: str, dtype: torch.dtype, limit: float
) -> None:
    untrained = [parameter.detach().clone() for parameter in create(dtype).parameters() if parameter.requires_grad]
    expected = train(create(dtype), slice(0, BATCH))
    assert len(expected) == 6  # four of the hypernetwork, two static offsets
    for first, second, single, start in zip(runs[0][run], runs[1][run], expected, untrained, strict=True):
        assert torch.equal(first, second)
        assert first.dtype == torch.float32
        assert not torch.equal(first, start)
        assert relative_error(first - start, single - start) < (limit if dtype == torch.bfloat16 else 1e-3)
        assert relative_error(first, single) < limit


def test_there_are_no_buffers() -> None:
    """DistributedDataParallel broadcasts buffers in every forward."""
    assert not list(create(torch.float32).buffers())
