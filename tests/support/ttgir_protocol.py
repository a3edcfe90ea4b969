"""A checker of the asynchronous operations of a Triton kernel for Hopper, which executes its TTGIR without arithmetic.

Scalars are numbers. A tensor is only what it comes from: the tiles of the operands that were multiplied for it. Every
copy and product ends as late as the waits allow. `run` raises `Fault` where a buffer is read before its copy has
arrived or overwritten while something still reads it, where registers of a product in flight are used, where a fence
is missing, and where a wait would never end; it returns what was stored where.

One thread stands for the whole block, so the barriers between its warps, which Triton inserts later, are not checked.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.ttgir import Op, parse


class Fault(Exception):
    """A broken rule of the asynchronous operations, with the line of the TTGIR."""

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.line = line

    def at(self, op: Op) -> Fault:
        """Return the fault with the line where it happened: the innermost of those that it passes."""
        return self if self.line is not None else Fault(f"{self} in line {op.line}: {op.text[:120]}", op.line)


@dataclass(frozen=True)
class Tensor:
    """A tensor: the products that it comes from, each as the tiles of its steps, and those that may be in flight."""

    products: frozenset[tuple[Any, ...]] = frozenset()
    flying: frozenset[int] = frozenset()


NOTHING = Tensor()


@dataclass
class Slot:
    """One buffer in shared memory."""

    content: Any = None
    arriving: object | None = None  # the phase of a barrier, or the group, with which a copy arrives
    read_by: set[Any] = field(default_factory=set)  # products and stores that may still read it
    fenced: bool = True
    alive: bool = True
    # of a barrier: arrivals and bytes that its phase still needs; slots that arrive with it
    phase: int = 0
    expected: int = -1
    copies: list[Slot] = field(default_factory=list)


@dataclass(frozen=True)
class Buffer:
    slots: tuple[Slot, ...]


SCALARS: dict[str, Callable[..., Any]] = {
    "addi": operator.add,
    "subi": operator.sub,
    "muli": operator.mul,
    "divsi": operator.floordiv,
    "remsi": operator.mod,
    "ceildivsi": lambda a, b: -(-a // b),
    "minsi": min,
    "maxsi": max,
    "andi": operator.and_,
    "ori": operator.or_,
    "xori": operator.xor,
    "extsi": int,
    "extui": int,
    "trunci": int,
}
COMPARE = {"eq": operator.eq, "ne": operator.ne, "slt": operator.lt, "sle": operator.le, "sgt": operator.gt}
COMPARE |= {"sge": operator.ge, "ult": operator.lt, "ule": operator.le, "ugt": operator.gt, "uge": operator.ge}
VIEWS = ("ttg.memdesc_trans", "ttg.memdesc_reshape", "ttg.memdesc_subslice", "ttg.memdesc_reinterpret")


class Program:
    """One program of a launch."""

    def __init__(self, arguments: Mapping[str, Any], number: int, programs: int) -> None:
        self.values: dict[str, Any] = dict(arguments)
        self.number, self.programs = number, programs
        self.products: list[tuple[int, list[Slot]]] = []  # in flight
        self.stores: list[tuple[object, Slot]] = []
        self.groups: list[list[Slot]] = []
        self.open: list[Slot] = []
        self.count = 0
        self.stored: list[tuple[str, tuple[int, ...], Tensor]] = []

    def run(self, ops: list[Op]) -> list[Any]:
        """Execute lines, and return what they yield."""
        for op in ops:
            if op.name == "scf.yield":
                return [self.values[name] for name in op.operands]
            try:
                results = self.execute(op)
            except Fault as fault:
                raise fault.at(op) from None
            self.values.update(zip(op.results, results, strict=True))
        return []

    def execute(self, op: Op) -> list[Any]:
        kind = op.name.rpartition(".")[2]
        if op.name == "scf.for":
            return self.loop(op)
        if op.name == "scf.if":
            chosen = 0 if self.values[op.operands[0]] else 1
            return self.run(op.regions[chosen]) if chosen < len(op.regions) else []
        values = self.values
        given = [values[name] for name in op.operands if name in values]
        method = getattr(self, kind, None) if op.name.startswith(("ttng.", "ttg.")) else None
        if method is not None:
            return list(method(op, *given))
        if op.name in VIEWS:
            return given[:1]
        types = {type(value) for value in given}
        if op.name.startswith("ttng.") or Slot in types or Buffer in types:
            raise Fault(f"{op.name} is not known")
        if op.name == "arith.select" and not isinstance(given[0], Tensor):
            return [given[1] if given[0] else given[2]]  # chosen by a branch, so nothing is read
        if Tensor not in types and op.name.startswith("arith."):
            return [self.scalar(op, kind, given)]
        if op.name in ("tt.get_program_id", "tt.get_num_programs"):
            return [self.number if kind == "get_program_id" else self.programs]
        return [self.opaque(given)] * len(op.results)

    def scalar(self, op: Op, kind: str, given: list[Any]) -> Any:
        if kind == "constant":
            found = re.search(r"arith\.constant (-?\d+|true|false)\b", op.text)
            return (
                Tensor()
                if found is None or "dense" in op.text
                else {"true": 1, "false": 0}.get(found[1]) or (0 if found[1] == "false" else int(found[1]))
            )
        if kind == "cmpi":
            return int(COMPARE[re.search(r"cmpi (\w+),", op.text)[1]](*given))  # type: ignore[index]
        return SCALARS[kind](*given) if kind in SCALARS else Tensor()

    def opaque(self, given: list[Any]) -> Tensor:
        # a tensor that no product is in adds nothing
        tensors = [value for value in given if isinstance(value, Tensor) and (value.products or value.flying)]
        if not tensors:
            return NOTHING
        flying = {number for number, _ in self.products}
        if flying and any(tensor.flying & flying for tensor in tensors):
            raise Fault("registers of a product in flight are used")
        return Tensor(frozenset().union(*(tensor.products for tensor in tensors)))

    def loop(self, op: Op) -> list[Any]:
        variable, *rest = op.operands
        first, last, step = (self.values[name] for name in rest[:3])
        carried, initial = rest[3::2], [self.values[name] for name in rest[4::2]]
        for value in range(first, last, step):
            self.values |= {variable: value, **dict(zip(carried, initial, strict=True))}
            initial = self.run(op.regions[0])
        return initial

    # Shared memory

    def check(self, slot: Slot, writes: bool, proxy: bool = False) -> Slot:
        if not slot.alive:
            raise Fault("a buffer is used after its end")
        if slot.arriving is not None:
            raise Fault("a buffer is used before its copy has arrived")
        if writes and slot.read_by:
            raise Fault("a buffer is overwritten while it is read")
        if proxy and not slot.fenced:
            raise Fault("a buffer that threads wrote is read asynchronously without a fence")
        return slot

    def local_alloc(self, op: Op, *given: Any) -> Iterator[Any]:
        shape = re.search(r"!ttg\.memdesc<([\dx]+)x", op.text.split("->")[-1])
        assert shape is not None
        sizes = shape[1].split("x")
        stages = int(sizes[0]) if len(sizes) > 2 or re.search(r"<\dx1xi64", op.text) else 1
        if given:
            yield Slot(content=self.opaque(list(given)), fenced=False)
        else:
            yield Buffer(tuple(Slot() for _ in range(stages))) if stages > 1 or len(sizes) > 2 else Slot()

    def memdesc_index(self, op: Op, buffer: Buffer, index: int) -> Iterator[Slot]:
        if not 0 <= index < len(buffer.slots):
            raise Fault(f"there is no slot {index}")
        yield buffer.slots[index]

    def local_dealloc(self, op: Op, buffer: Slot | Buffer) -> Iterator[Any]:
        for slot in buffer.slots if isinstance(buffer, Buffer) else (buffer,):
            if slot.alive:
                self.check(slot, writes=True).alive = False
        yield from ()

    def local_store(self, op: Op, tensor: Tensor, slot: Slot) -> Iterator[Any]:
        self.check(slot, writes=True)
        slot.content, slot.fenced = self.opaque([tensor]), False
        yield from ()

    def local_load(self, op: Op, slot: Slot, *token: Any) -> Iterator[Tensor]:
        content = self.check(slot, writes=False).content
        if content is None:
            raise Fault("a buffer is read that nobody has written")
        yield content if isinstance(content, Tensor) else Tensor()

    def fence_async_shared(self, op: Op) -> Iterator[Any]:
        for value in list(self.values.values()):
            for slot in value.slots if isinstance(value, Buffer) else (value,) if isinstance(value, Slot) else ():
                slot.fenced = True
        yield from ()

    # Barriers and copies

    def init_barrier(self, op: Op, barrier: Slot, *_: Any) -> Iterator[Any]:
        barrier.phase, barrier.expected = 0, -1
        yield from ()

    def inval_barrier(self, op: Op, barrier: Slot) -> Iterator[Any]:
        if barrier.copies:
            raise Fault("a barrier ends while copies arrive at it")
        yield from ()

    def barrier_expect(self, op: Op, barrier: Slot, there: int) -> Iterator[Any]:
        if there:
            if barrier.expected >= 0:
                raise Fault("a barrier is used again before its phase was waited for")
            barrier.expected = int(re.search(r", (\d+),", op.text)[1])  # type: ignore[index]
        yield from ()

    def async_tma_copy_global_to_local(self, op: Op, source: str, *given: Any) -> Iterator[Any]:
        *at, slot, barrier, there = given
        if there:
            self.check(slot, writes=True)
            if barrier.expected < 0:
                raise Fault("a copy arrives at a barrier that does not expect it")
            slot.content, slot.arriving, slot.fenced = (source, *at), barrier, True
            barrier.expected -= bytes_of(op.text.split("->")[-1])
            barrier.copies.append(slot)
        yield from ()

    def wait_barrier(self, op: Op, barrier: Slot, phase: int, *there: Any) -> Iterator[Any]:
        if barrier.phase % 2 == phase:
            if barrier.expected != 0:
                raise Fault(f"a wait never ends: {barrier.expected} bytes are missing")
            for slot in barrier.copies:
                slot.arriving = None
            barrier.copies, barrier.expected = [], -1
            barrier.phase += 1
        yield from ()

    def async_tma_copy_local_to_global(self, op: Op, target: str, *given: Any) -> Iterator[Any]:
        *at, slot = given
        self.check(slot, writes=False, proxy=True)
        token = object()
        slot.read_by.add(token)
        self.stores.append((token, slot))
        self.stored.append((target, tuple(at), slot.content))
        yield from ()

    def async_tma_store_wait(self, op: Op) -> Iterator[Any]:
        while len(self.stores) > pending(op):
            token, slot = self.stores.pop(0)
            slot.read_by.discard(token)
        yield from ()

    def async_copy_global_to_local(self, op: Op, *given: Any) -> Iterator[Any]:
        slot = next(value for value in given if isinstance(value, Slot))
        self.check(slot, writes=True)
        slot.content, slot.arriving = ("copy", op.line), self
        self.open.append(slot)
        yield Tensor()

    def async_commit_group(self, op: Op, *_: Any) -> Iterator[Any]:
        self.groups.append(self.open)
        self.open = []
        yield Tensor()

    def async_wait(self, op: Op, *_: Any) -> Iterator[Any]:
        while len(self.groups) > pending(op):
            for slot in self.groups.pop(0):
                slot.arriving = None
        yield Tensor()

    # Products

    def warp_group_dot(self, op: Op, a: Any, b: Slot, acc: Tensor, use: int = 1) -> Iterator[Tensor]:
        slots = [operand for operand in (a, b) if isinstance(operand, Slot)]
        for slot in slots:
            self.check(slot, writes=False, proxy=True)
        if isinstance(a, Tensor):
            self.opaque([a])
        self.count += 1
        for slot in slots:
            slot.read_by.add(self.count)
        self.products.append((self.count, slots))
        steps = next(iter(acc.products), ()) if use else ()
        tiles = tuple(operand.content if isinstance(operand, Slot) else operand for operand in (a, b))
        if "isAsync = true" not in op.text:
            self.finish(0)
        yield Tensor(frozenset([(*steps, tiles)]), acc.flying | {self.count})

    def warp_group_dot_wait(self, op: Op, *given: Any) -> Iterator[Any]:
        self.finish(pending(op))
        yield from given

    def finish(self, left: int) -> None:
        while len(self.products) > left:
            number, slots = self.products.pop(0)
            for slot in slots:
                slot.read_by.discard(number)

    def end(self) -> None:
        if (
            self.products
            or self.stores
            or any(isinstance(value, Slot) and value.arriving is not None for value in self.values.values())
        ):
            raise Fault("the kernel ends while something is in flight")


def pending(op: Op) -> int:
    found = re.search(r"(?:pendings|num) = (\d+)", op.text)
    assert found is not None
    return int(found[1])


def bytes_of(memdesc: str) -> int:
    """Return the size of a ``!ttg.memdesc<128x64xbf16, ...>``."""
    found = re.search(r"memdesc<([\dx]+)x[a-zA-Z]+(\d+)", memdesc)
    assert found is not None
    count = 1
    for size in found[1].split("x"):
        count *= int(size)
    return count * int(found[2].rstrip("EMFN") if not found[2].isdigit() else found[2]) // 8


def run(text: str, tuples: Mapping[str, tuple[int, ...]], programs: int) -> list[tuple[str, tuple[int, ...], Any]]:
    """Execute all programs of a kernel, and return their stores by TMA: the array, the position, the value.

    Args:
        text: the TTGIR.
        tuples: numbers for arguments of the kernel that are tuples, such as ``shape``; all other numbers are 1.
    """
    names, ops = parse(text)
    numbers = {name: list(values) for name, values in tuples.items()}
    arguments: dict[str, Any] = {}
    for name, kind in names.items():
        base = re.sub(r"[._]\d+$", "", name[1:])  # the members of a tuple are shape.0, shape.1 or shape, shape_16
        if "tensordesc" in kind:
            arguments[name] = name[1:]
        else:
            arguments[name] = Tensor() if "ptr" in kind else numbers[base].pop(0) if base in numbers else 1
    stored = []
    for number in range(programs):
        program = Program(arguments, number, programs)
        program.run(ops)
        program.end()
        stored += program.stored
    return stored
