"""Files that this package writes and reads again, cut at any byte or with one bit flipped: none is taken for good."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from hystar_fast.data.whole_files import sealed_json
from hystar_fast.experiments.records import read_earlier
from hystar_fast.methods.adapter_files import load_method, save_method
from hystar_fast.methods.suite import create_method, tiny_config
from hystar_fast.models.adapter_format import read_adapter
from hystar_fast.models.backbones import create_backbone
from hystar_fast.retrieval.results_json import write_json
from hystar_fast.train.checkpoint import Progress, load_checkpoint, read_checkpoint, save_checkpoint, write_checked
from hystar_fast.train.metrics_log import MetricsLog
from tests.support.cli import refused
from tests.support.damage import damaged
from tests.support.linear_method import Linear
from tests.support.small_clip import small_config


def checkpoint(folder: Path) -> tuple[Path, Callable[[], object]]:
    method = Linear()
    save_checkpoint(folder / "checkpoint.pt", method, torch.optim.AdamW([method.weight]), Progress(3))
    return folder / "checkpoint.pt", lambda: read_checkpoint(folder / "checkpoint.pt")


def adapter(name: str) -> Callable[[Path], tuple[Path, Callable[[], object]]]:
    def write(folder: Path) -> tuple[Path, Callable[[], object]]:
        save_method(create_method("ssf", tiny_config(None)), folder)
        return folder / name, lambda: read_adapter(folder, kinds=("hystar_fast.method/1",))

    return write


def results(folder: Path) -> tuple[Path, Callable[[], object]]:
    trial = {"method": "ssf", "recall": 31.5}
    write_json(folder / "tuning.json", {"settings": {"steps": 3}, "trials": [trial], "chosen": {"ssf": 0.1}})
    return folder / "tuning.json", lambda: read_earlier(folder / "tuning.json", {"settings": {"steps": 3}}, "trials")


def log(folder: Path) -> tuple[Path, Callable[[], object]]:
    written = MetricsLog(folder)
    for step in range(1, 5):
        written.write(step, "train", {"loss": 1 / step})
    size, sha256 = written.sync()
    written.close()
    return folder / "metrics.jsonl", lambda: MetricsLog(folder, size=size, sha256=sha256).close()


WRITERS = {
    "checkpoint": checkpoint,
    "adapter": adapter("adapter.safetensors"),
    "description": adapter("config.json"),
    "results": results,
    "log": log,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_damage_is_found(kind: str, tmp_path: Path) -> None:
    path, read = WRITERS[kind](tmp_path)
    whole, expected = path.read_bytes(), read()
    if kind in ("description", "results"):
        whole = whole[:-1]  # without the last line break nothing is lost
    for content in damaged(whole, 40, seed=len(kind)):
        path.write_bytes(content)
        try:
            found: Any = read()
        except ValueError as error:
            assert path.name in str(error) and "\n" not in str(error)
        else:  # a bit in the name of the checksum: nothing else has changed
            assert kind in ("description", "results") and without_unknown(found) == without_unknown(expected)


def without_unknown(found: Any) -> str:
    """Return the known entries of what was read, in a form that can be compared."""
    entries = found[0] if isinstance(found, tuple) else found
    known = ("format", "method", "settings", "config", "fingerprints", "tensors_sha256", "trials", "chosen")
    return json.dumps({name: entries[name] for name in known if name in entries}, sort_keys=True)


def test_adapters_of_version_0_1_0_have_no_checksum_and_are_read(tmp_path: Path) -> None:
    save_method(create_method("ssf", tiny_config(None)), tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    del described["checksum"]
    (tmp_path / "config.json").write_text(json.dumps(described, indent=2))
    assert load_method(tmp_path).name == "ssf"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_an_adapter_that_has_diverged_is_refused(value: float, tmp_path: Path) -> None:
    method = create_method("ssf", tiny_config(None))
    parameters = method.trained_parameters()
    with torch.no_grad():
        next(iter(parameters.values())).view(-1)[0] = value
    if value == 1e30:  # finite, but no embedding is
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.fill_(value)
        save_method(method, tmp_path / "adapter")
        found = refused("eval", "--adapter", tmp_path / "adapter", "--limit", 3, "--output", tmp_path / "out")
        assert "embeddings of 'ssf' must be finite" in found and not (tmp_path / "out").exists()
        return
    with pytest.raises(FloatingPointError, match="parameters must be finite to be saved, got NaN or inf in "):
        save_method(method, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    optimizer = torch.optim.AdamW(parameters.values())
    with pytest.raises(FloatingPointError, match="the parameters of 'ssf' are not finite after step 7"):
        save_checkpoint(tmp_path / "checkpoint.pt", method, optimizer, Progress(7))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_state_that_is_not_finite_is_refused_when_it_is_read(tmp_path: Path) -> None:
    method = Linear()
    optimizer = torch.optim.AdamW([method.weight])
    save_checkpoint(tmp_path / "c.pt", method, optimizer, Progress(1))
    content = read_checkpoint(tmp_path / "c.pt")
    content["parameters"]["matrix"][0][3, 3] = torch.nan
    write_checked(tmp_path / "c.pt", content)
    before = method.weight.detach().clone()
    with pytest.raises(ValueError, match=r"path must hold finite parameters, got NaN or inf in .*c\.pt"):
        load_checkpoint(tmp_path / "c.pt", method, optimizer)
    assert torch.equal(method.weight, before)

    save_method(create_method("ssf", tiny_config(None)), tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "adapter.safetensors")
    name = next(iter(tensors))
    tensors[name].view(-1)[-1] = torch.inf
    (tmp_path / "adapter.safetensors").write_bytes(save(tensors))
    described["tensors_sha256"] = hashlib.sha256(save(tensors)).hexdigest()
    (tmp_path / "config.json").write_bytes(sealed_json(described))
    with pytest.raises(ValueError, match=f"must hold finite parameters, got NaN or inf in {name}"):
        load_method(tmp_path)


def test_frozen_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    path = tmp_path / "clip" / "open_clip_model.safetensors"
    tensors = load_file(path)
    tensors["visual.conv1.weight"][0, 0, 0, 0] = -torch.inf
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"must have finite weights, got NaN or inf in .*conv1\.weight"):
        create_backbone(config)
