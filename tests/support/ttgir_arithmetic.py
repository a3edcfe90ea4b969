"""Numbers, tensors and global memory of `ttgir_executor`: what a line of the TTGIR computes, with tensors of torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.support.ttgir import Op
from tests.support.ttgir_protocol import COMPARE, SCALARS, Fault

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64, "i32": torch.int32}
FLOATS = {"addf": torch.add, "mulf": torch.mul, "andi": torch.bitwise_and, "ori": torch.bitwise_or}
FLOATS |= {"addi": torch.add, "muli": torch.mul, "shrsi": torch.bitwise_right_shift}
SHUFFLE = re.compile(r"shfl\.sync\.bfly\.b32 \$0, \$1, (\d+), 31, -1;")


@dataclass(frozen=True)
class Pointer:
    """Elements of a flat array: the positions may be outside it, if a mask keeps them from being read."""

    memory: Tensor
    at: Any


class Arithmetic:
    """Lines that order nothing."""

    program: tuple[int, int]
    layouts: str

    def arith(self, op: Op, kind: str, given: list[Any]) -> Any:
        if kind == "constant":
            if op.text.endswith(("true", "false")):
                return int(op.text.endswith("true"))
            text = re.search(r"constant (?:dense<)?([-\w.+]+)>? : (?:tensor<((?:\d+x)*))?(\w+)", op.text)
            assert text is not None, op.text
            number = float("nan") if text[1] == "0x7FC00000" else float(text[1]) if "f" in text[3] else int(text[1])
            if "dense" not in op.text:
                return number
            shape = [int(size) for size in (text[2] or "").split("x") if size]
            return torch.full(shape, number, dtype=DTYPES[text[3]])
        whole = any(isinstance(value, Tensor) for value in given)
        if kind == "cmpi":
            result = COMPARE[re.search(r"cmpi (\w+),", op.text)[1]](*given)  # type: ignore[index]
            return result if whole else int(result)
        if kind == "select":
            return torch.where(*given) if whole else given[1] if given[0] else given[2]
        if kind in ("truncf", "extf"):
            return given[0].to(DTYPES[re.search(r"to tensor<[\dx]+x(\w+)", op.text)[1]])  # type: ignore[index]
        return FLOATS[kind](*given) if whole else SCALARS[kind](*given)

    def op_get_program_id(self, op: Op) -> Sequence[Any]:
        return [self.program[0]]

    def op_get_num_programs(self, op: Op) -> Sequence[Any]:
        return [self.program[1]]

    def op_make_range(self, op: Op) -> Sequence[Any]:
        end, start = (int(found) for found in re.findall(r"(?:end|start) = (\d+)", op.text))
        return [torch.arange(start, end, dtype=torch.int32)]

    def op_splat(self, op: Op, value: Any) -> Sequence[Any]:
        shape = shape_of(op)
        if isinstance(value, Pointer):
            return [Pointer(value.memory, torch.full(shape, value.at, dtype=torch.int64))]
        return [torch.full(shape, value, dtype=DTYPES[re.search(r": (\w+) ->", op.text)[1]])]  # type: ignore[index]

    def op_convert_layout(self, op: Op, value: Any) -> Sequence[Any]:
        return [value]

    def shaped(self, value: Any, change: Callable[[Tensor], Tensor]) -> Sequence[Any]:
        return [Pointer(value.memory, change(value.at)) if isinstance(value, Pointer) else change(value)]

    def op_expand_dims(self, op: Op, value: Any) -> Sequence[Any]:
        return self.shaped(value, lambda a: a.unsqueeze(int(re.search(r"axis = (\d)", op.text)[1])))  # type: ignore[index]

    def op_broadcast(self, op: Op, value: Any) -> Sequence[Any]:
        return self.shaped(value, lambda a: a.expand(shape_of(op)))

    def op_reshape(self, op: Op, value: Any) -> Sequence[Any]:
        return self.shaped(value, lambda a: a.reshape(shape_of(op)))

    def op_trans(self, op: Op, value: Any) -> Sequence[Any]:
        order = [int(axis) for axis in re.search(r"order = array<i32: ([\d, ]+)>", op.text)[1].split(",")]  # type: ignore[index]
        return self.shaped(value, lambda a: a.permute(order))

    def op_split(self, op: Op, value: Tensor) -> Sequence[Any]:
        return value.unbind(-1)

    def op_join(self, op: Op, *values: Tensor) -> Sequence[Any]:
        return [torch.stack(values, -1)]

    def op_reduce(self, op: Op, value: Tensor) -> Sequence[Any]:
        if op.regions[0][0].name != "arith.addf":
            raise Fault("only sums are known")
        return [value.sum(int(re.search(r"axis = (\d)", op.text)[1]))]  # type: ignore[index]

    def op_elementwise_inline_asm(self, op: Op, value: Tensor) -> Sequence[Any]:
        code = op.text.split('"')[1]
        if shuffle := SHUFFLE.fullmatch(code):
            moved = self.lane_step(op, int(shuffle[1]))
            places = [torch.arange(size) ^ step for size, step in zip(value.shape, moved, strict=True)]
            return [value[torch.meshgrid(*places, indexing="ij")]]
        return unpacked(code, value)

    def lane_step(self, op: Op, lanes: int) -> list[int]:
        """Return how far apart, along each axis, the values of threads are whose numbers differ in one bit."""
        layout = op.text.split("-> ")[-1]
        sliced = [int(axis) for axis in re.findall(r"dim = (\d)", layout)]
        name = re.search(r"(#linear\d*)", layout)
        found = name and re.search(rf"^{name[1]} = .* lane = (\[\[.*?\]\])", self.layouts, re.MULTILINE)
        assert found, layout
        base = [int(step) for step in re.findall(r"\[([\d, ]+)\]", found[1])[lanes.bit_length() - 1].split(",")]
        for axis in sliced:
            del base[axis]
        return base

    # Global memory

    def op_bitcast(self, op: Op, pointer: Pointer) -> Sequence[Any]:
        assert pointer.at == 0
        return [Pointer(pointer.memory.view(DTYPES[re.findall(r"ptr<(\w+)>", op.text)[-1]]), 0)]

    def op_addptr(self, op: Op, pointer: Pointer, offset: Any) -> Sequence[Any]:
        return [Pointer(pointer.memory, pointer.at + offset)]

    def op_load(self, op: Op, pointer: Pointer, mask: Tensor | None = None, other: Any = None) -> Sequence[Any]:
        if not isinstance(pointer.at, Tensor):
            return [pointer.memory[pointer.at].item()]
        mask = torch.ones(()).bool() if mask is None else mask
        if ((pointer.at < 0) | (pointer.at >= len(pointer.memory)))[mask.expand(pointer.at.shape)].any():
            raise Fault("a load is outside its array")
        loaded = pointer.memory[torch.where(mask, pointer.at, 0)]
        return [loaded if other is None else torch.where(mask, loaded, other)]

    def op_store(self, op: Op, pointer: Pointer, value: Tensor) -> Sequence[Any]:
        if pointer.at.min() < 0 or pointer.at.max() >= len(pointer.memory):
            raise Fault("a store is outside its array")
        if not pointer.memory[pointer.at].isnan().all() or pointer.at.unique().numel() < pointer.at.numel():
            raise Fault("something is stored twice")
        pointer.memory[pointer.at] = value
        return []


def unpacked(code: str, word: Tensor) -> Sequence[Tensor]:
    """Return $0 and $1 of an assembly that takes the 32-bit word $2 apart."""
    names = {"$2": word}
    for line in filter(None, map(str.strip, code.strip("{}").split(";"))):
        name, *operands = re.findall(r"[^\s,{}]+", line)
        if name == "shl.b32":
            names[operands[0]] = names[operands[1]] << int(operands[2])
        elif name == "and.b32":
            names[operands[0]] = names[operands[1]] & (int(operands[2], 16) - (1 << 32))
        elif name == "mov.b32":
            names[operands[0]], names[operands[1]] = names[operands[2]] << 16 >> 16, names[operands[2]] >> 16
        elif name == "cvt.f32.f16":
            names[operands[0]] = names[operands[1]].short().view(torch.float16).float().view(torch.int32)
        elif name != ".reg":
            raise Fault(f"{line} is not known")
    return [names[result].view(torch.float32) for result in ("$0", "$1")]


def shape_of(op: Op) -> list[int]:
    return [int(size) for size in re.search(r"-> tensor<((?:\d+x)+)", op.text)[1].split("x") if size]  # type: ignore[index]
