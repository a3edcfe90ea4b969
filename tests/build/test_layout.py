"""The source tree: directions of imports, lengths of files, the cost of importing, declared dependencies."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import hystar_fast

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hystar_fast"
# The layers that each layer may import; "" is hystar_fast/__init__.py itself, for __version__.
# The layers, lowest first; each may import itself and those below it. `data` imports nothing of ours: it stands below
# `models` because a backbone states how it resizes and normalises a picture in the types of `data`.
LIBRARY = ("ref", "ops", "nn")
APPLICATION = ("models", "methods", "retrieval")
MAY_IMPORT = {
    "ref": {"ref"},
    "kernels": {"kernels"},
    "ops": {"ref", "kernels", "_C", "ops", ""},
    "nn": {*LIBRARY},
    "data": {"data"},
    "terminal": {"terminal"},
    "models": {*LIBRARY, "data", "models", ""},
    "methods": {*LIBRARY, "data", "models", "methods"},
    "retrieval": {*LIBRARY, "data", *APPLICATION, ""},
    "index": {*LIBRARY, "data", *APPLICATION, "index"},
    "serve": {*LIBRARY, "data", *APPLICATION, "index", "terminal", "serve", ""},
    "train": {*LIBRARY, "data", *APPLICATION, "train", ""},
    "experiments": {*LIBRARY, "data", *APPLICATION, "train", "terminal", "experiments"},
    "__main__": {"cli"},
    "cli": {*LIBRARY, "data", *APPLICATION, "index", "serve", "train", "terminal", "experiments", "cli", ""},
}
# Distribution of an import name, where the two differ.
DISTRIBUTION = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "open_clip": "open_clip_torch",
    "ot": "POT",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
}


def sources() -> list[Path]:
    return [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "kernels").rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "hystar_fast")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def literal_start(node: ast.expr) -> str:
    """Return the text at the start of a string literal or an f-string."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and full name of every import of a file, by statement or by import_module."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in ("import_module", "__import__", "find_spec"):
                yield node.lineno, literal_start(node.args[0])


def layer(name: str) -> str:
    """Return the layer of a name: ops for hystar_fast.ops.x and for hystar_fast.svd_linear."""
    first = name.split(".")[1] if "." in name else ""
    if first in hystar_fast._EXPORTS:
        return hystar_fast._EXPORTS[first].split(".")[1]
    return first if first in MAY_IMPORT or first == "_C" else ""


def test_imports_point_one_way() -> None:
    wrong = []
    for path in sources():
        here = layer(module_name(path))
        if path == PACKAGE / "__init__.py":
            continue
        assert here in MAY_IMPORT, f"{path.relative_to(ROOT)} is in no layer: add its folder to MAY_IMPORT"
        for line, name in imported(path):
            if name.split(".")[0] == "hystar_fast" and layer(name) not in MAY_IMPORT[here]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({here}) imports {name}")
            if name.split(".")[0] == "kernels":
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}, not hystar_fast.kernels")
    assert not wrong, "\n".join(wrong)


def test_only_ops_touches_kernels_and_the_extension() -> None:
    users = {
        layer(module_name(path))
        for path in sources()
        for _, name in imported(path)
        if layer(name) in ("kernels", "_C") and name.startswith("hystar_fast.")
    }
    assert users <= {"ops", "kernels"}


def test_the_package_init_imports_only_the_standard_library() -> None:
    statements = [node for node in tree(PACKAGE / "__init__.py").body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in statements}
    assert {name.split(".")[0] for name in names if name} <= sys.stdlib_module_names


def test_the_lower_layers_import_no_model_library() -> None:
    models = ("open_clip", "transformers", "timm", "torchvision", "PIL", "peft")
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources()
        if layer(module_name(path)) in ("ref", "kernels", "ops", "nn")
        for line, name in imported(path)
        if name.split(".")[0] in models
    ]
    assert not wrong, "\n".join(wrong)


def test_the_reference_needs_only_torch() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((PACKAGE / "ref").glob("*.py"))
        for line, name in imported(path)
        if name.split(".")[0] not in {"torch", "hystar_fast", *sys.stdlib_module_names}
    ]
    assert not wrong, "\n".join(wrong)


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9_.-]", entry)[0].lower().replace("-", "_") for entry in requirements}

    core = names(project["dependencies"])
    extras = set().union(*(names(entries) for entries in project["optional-dependencies"].values()))
    served = names(project["optional-dependencies"]["serve"])
    wrong = []
    for path in sources():
        functions = [node for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        on_use = {line for node in functions for line in range(node.lineno, (node.end_lineno or 0) + 1)}
        for line, name in imported(path):
            first = name.split(".")[0]
            if not first or first in sys.stdlib_module_names or first in ("hystar_fast", "kernels"):
                continue
            distribution = DISTRIBUTION.get(first, first).lower().replace("-", "_")
            # an extra may be imported where it is used, never when a module loads, but for the types of the server
            is_late = line in on_use or (layer(module_name(path)) == "serve" and distribution in served)
            if distribution not in core and (distribution not in extras or not is_late):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {first}, which is not a core dependency")
    assert not wrong, "\n".join(wrong)


def test_nothing_but_the_server_imports_the_server_when_it_loads() -> None:
    wrong = []
    for path in sources():
        functions = [node for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        on_use = {line for node in functions for line in range(node.lineno, (node.end_lineno or 0) + 1)}
        wrong += [
            f"{path.relative_to(ROOT)}:{line} imports {name}"
            for line, name in imported(path)
            if layer(module_name(path)) != "serve" and layer(name) == "serve" and line not in on_use
        ]
    assert not wrong, "\n".join(wrong)


def test_no_test_imports_another_test() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line, name in imported(path)
        if re.match(r"(tests\.)?(\w+\.)*(test_\w+|conftest)\b", name) and not name.startswith("tests.support.")
    ]
    assert not wrong, "\n".join(wrong)


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in sources()}
    missing = [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()]
    assert not missing


def test_files_are_short_and_have_meaningful_names() -> None:
    files = [ROOT / "setup.py", *sources()]
    for folder in ("tests", "bench", "csrc"):
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h")]
    long = {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > 400}
    assert not long, f"over 400 lines, split by meaning: {long}"
    vague = re.compile(r"^(utils?|common|helpers?|misc|legacy_.*|.*_v\d+)$")
    assert not [str(path.relative_to(ROOT)) for path in files if vague.match(path.stem)]


def test_modules_of_the_package_have_different_names() -> None:
    """Only the folders of the ops have the same modules: api, checks, cpu, cuda, torch."""
    paths = [path for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")]
    stems = Counter(path.stem for path in paths if path.parent.parent.name != "ops")
    assert [stem for stem, count in stems.items() if count > 1] == []


def test_the_package_reads_no_environment_variable_of_its_own() -> None:
    assert not [str(path.relative_to(ROOT)) for path in sources() if re.search(r"['\"]HYSTAR", path.read_text())]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("statement", ["from kernels import svd_linear", "import kernels.svd_linear.gemm"])
def test_kernels_cannot_be_imported_as_a_top_level_module(statement: str) -> None:
    done = python(statement)
    assert done.returncode != 0
    assert "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr


def test_transformers_does_not_mistake_the_checkout_for_the_kernels_package() -> None:
    done = python("import transformers.activations; print(transformers.utils.is_kernels_available())")
    assert done.stdout.strip() == "False", done.stderr


IMPORTED_AFTER_TORCH = """
import json, sys, time
start = time.process_time()
import torch
middle, before = time.process_time(), {*sys.modules}
{statement}
share = (time.process_time() - middle) / (middle - start)
packages = {name.partition(".")[0] for name in {*sys.modules} - before} - {*sys.stdlib_module_names}
print(json.dumps([sorted(packages), len({*sys.modules} - before), share]))
"""


@pytest.mark.parametrize(
    ("statement", "packages", "most_modules", "most_of_torch"),
    [
        ("import hystar_fast", {"hystar_fast"}, 1, 0.02),
        (
            "from hystar_fast import FastSVDLinear, perturbed_topk, style_nce",
            {"hystar_fast", "safetensors", "torch", "triton"},
            200,
            0.4,
        ),
    ],
)
def test_importing_the_kernel_library_costs_little_beside_torch(
    statement: str, packages: set[str], most_modules: int, most_of_torch: float
) -> None:
    """Compare the CPU seconds in one process; measured are 0.001 and 0.13 of those of torch, and 1 and 140 modules."""
    done = python(IMPORTED_AFTER_TORCH.replace("{statement}", statement))
    assert done.returncode == 0, done.stderr
    loaded, modules, share = json.loads(done.stdout)
    assert {*loaded} <= packages, "no model library, and no package of an extra"
    assert modules <= most_modules and share <= most_of_torch, (modules, share)


def test_importing_prints_nothing_and_dir_lists_every_public_name() -> None:
    done = python("import hystar_fast as hf\nassert set(hf.__all__) <= set(dir(hf))\nhf.no_such_name")
    assert done.stdout == ""
    assert "AttributeError: module 'hystar_fast' has no attribute 'no_such_name'" in done.stderr
