"""``hystar-fast info``: the machine on which the ops run."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch

import hystar_fast
from hystar_fast.ops import native
from hystar_fast.ops.status import info
from hystar_fast.retrieval.results_json import machine
from hystar_fast.terminal.console import Console, create_table, print_json


def run_info(console: Console, *, as_json: bool) -> None:
    """Print the version, the machine, and which implementation of each op runs here."""
    rows, lines = info(), machine_lines()
    if as_json:
        print_json({"version": hystar_fast.__version__, "machine": lines, "ops": rows})
        return
    console.print(f"hystar-fast {hystar_fast.__version__}")
    for name, value in lines.items():
        console.print(f"{name}: {value}")
    table = create_table("op", "device", "implementation", "why not a faster one")
    for row in rows:
        table.add_row(row["op"], row["device"], row["implementation"], row["reason"] or "-")
    console.print(table)


def machine_lines() -> dict[str, str]:
    """Return the processor, the GPUs and the versions that decide which implementation runs."""
    here = machine()
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return {
        "processor": f"{here['processor']}, cores: {here['cores']}, threads of torch: {here['torch_threads']}",
        "GPU": ", ".join(gpus) or "none found",
        "torch": f"{torch.__version__}, {built}",
        "triton": _version("triton"),
        "extension": _extension(),
        "python": f"{here['python']}, {here['system']}",
    }


def _extension() -> str:
    problem = native.extension_problem()
    if problem is not None:
        return f"not used: {problem}"
    ready, reason = native.cuda_ready()
    return f"compiled, {native.instruction_set()}; its CUDA kernels {'run' if ready else f'do not run: {reason}'}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
