"""An executor of a warp-specialised Triton kernel for Hopper, which runs its TTGIR with arithmetic, on a CPU.

A tensor is a whole tensor of torch, whatever its layout; only a shuffle looks at the layout. The partitions take turns
in a given order: each runs until a barrier stops it. Asynchronous copies and products are agents of their own. Vector
clocks tell what an agent knows of the others: `run` raises `Fault` if one reads what it does not know to be written,
or overwrites what it does not know to be read (whatever the order that was run), if registers of a product in flight
are used, a fence is missing, or every partition waits.

One thread stands for the warps of a partition, so the barriers between them, which Triton inserts later, are not
checked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tests.support.ttgir import Op, parse
from tests.support.ttgir_arithmetic import Arithmetic, Pointer
from tests.support.ttgir_protocol import Fault, bytes_of, pending

Clock = dict[object, int]


@dataclass(eq=False)
class Slot:
    """A buffer in shared memory, who wrote it last, and who has read that."""

    content: Tensor | None = None
    written: tuple[object, int] | None = None
    read: list[tuple[object, int]] = field(default_factory=list)
    fenced: bool = True


@dataclass(frozen=True)
class View:
    """Rows and columns of a slot."""

    slot: Slot
    at: tuple[slice, ...]


@dataclass(eq=False)
class Barrier:
    """An mbarrier: what its phase still waits for, and what those know who arrived."""

    count: int = 0
    arrivals: int = 0
    bytes: int = 0
    phase: int = 0
    gathered: Clock = field(default_factory=dict)
    passed: Clock = field(default_factory=dict)

    def arrive(self, clock: Clock, arrivals: int, count: int = 0) -> None:
        self.arrivals -= arrivals
        self.bytes += count
        merge(self.gathered, clock)
        if self.arrivals < 0 or self.bytes < 0:
            raise Fault("more arrives at a barrier than its phase expects")
        if self.arrivals == self.bytes == 0:
            merge(self.passed, self.gathered)
            self.phase, self.arrivals = self.phase + 1, self.count


@dataclass
class Product:
    """An accumulator whose product may be in flight."""

    value: Tensor
    number: object


def merge(clock: Clock, other: Clock) -> None:
    for agent, time in other.items():
        clock[agent] = max(time, clock.get(agent, 0))


class Partition(Arithmetic):
    """Warps that run the same lines."""

    def __init__(self, values: Mapping[str, Any], clock: Clock, program: tuple[int, int], layouts: str) -> None:
        self.values, self.clock, self.program, self.layouts = dict(values), dict(clock), program, layouts
        self.products: list[tuple[object, Clock]] = []
        self.stores: list[Clock] = []
        self.parts: list[Partition] = []
        self.given: Sequence[Any] = ()
        self.executed = 0

    def tick(self) -> Clock:
        self.clock[self] = self.clock.get(self, 0) + 1
        return self.clock

    def agent(self) -> Clock:
        """Return the clock of an asynchronous operation that begins now, whose own time is 1."""
        return {**self.tick(), object(): 1}

    def run(self, ops: list[Op]) -> Iterator[list[Any]]:
        """Execute lines, and yield None at a barrier that does not let this partition pass, then what they yield."""
        for op in ops:
            if op.name in ("scf.yield", "tt.reduce.return"):
                yield [self.values[name] for name in op.operands]
                return
            try:
                if op.name == "scf.for":
                    results = yield from self.loop(op)
                elif op.name == "scf.if":
                    chosen = 0 if self.values[op.operands[0]] else 1
                    results = yield from self.inner(op.regions[chosen] if chosen < len(op.regions) else [])
                elif op.name == "ttng.wait_barrier":
                    barrier, phase, _ = (self.values[name] for name in op.operands)
                    while barrier.phase % 2 == phase:
                        yield None
                    merge(self.clock, barrier.passed)
                    results = []
                else:
                    results = self.execute(op)
            except Fault as fault:
                raise fault.at(op) from None
            self.values.update(zip(op.results, results, strict=True))
            self.executed += 1
        yield []

    def inner(self, ops: list[Op]) -> Iterator[Any]:
        for result in self.run(ops):
            if result is not None:
                return result
            yield None
        raise AssertionError

    def loop(self, op: Op) -> Iterator[Any]:
        variable, *rest = op.operands
        first, last, step = (self.values[name] for name in rest[:3])
        carried, values = rest[3::2], [self.values[name] for name in rest[4::2]]
        for number in range(first, last, step):
            self.values |= {variable: number, **dict(zip(carried, values, strict=True))}
            values = yield from self.inner(op.regions[0])
        return values

    def execute(self, op: Op) -> Sequence[Any]:
        kind = op.name.split(".")[-1]
        given = [self.values[name] for name in op.operands if name in self.values]
        if any(isinstance(value, Product) for value in given) and not kind.startswith("warp_group_dot"):
            raise Fault("registers of a product in flight are used")
        method: Callable[..., Sequence[Any]] | None = getattr(self, f"op_{kind}", None)
        if method is not None:
            return method(op, *given)
        if op.name.startswith("arith."):
            return [self.arith(op, kind, given)]
        raise Fault(f"{op.name} is not known")

    # Shared memory

    def knows(self, clock: Clock, event: tuple[object, int] | None) -> bool:
        return event is None or clock.get(event[0], 0) >= event[1]

    def read(self, slot: Slot, clock: Clock, event: tuple[object, int], proxy: bool) -> Tensor:
        if slot.content is None or not self.knows(clock, slot.written):
            raise Fault("a buffer is read that may not be written yet")
        if proxy and not slot.fenced:
            raise Fault("a buffer that threads wrote is read asynchronously without a fence")
        slot.read.append(event)
        return slot.content

    def write(self, slot: Slot, clock: Clock, event: tuple[object, int], content: Tensor) -> None:
        if not all(self.knows(clock, known) for known in (slot.written, *slot.read)):
            raise Fault("a buffer is overwritten that may still be in use")
        slot.content, slot.written, slot.read = content, event, []

    def op_local_alloc(self, op: Op) -> Sequence[Any]:
        shape = re.search(r"memdesc<([\dx]+)x(\w+)", op.text)
        assert shape is not None
        stages, kind = int(shape[1].split("x")[0]), Barrier if shape[2] == "i64" else Slot
        return [[kind() for _ in range(stages)] if "x" in shape[1] else kind()]

    def op_memdesc_index(self, op: Op, slots: list[Any], index: int) -> Sequence[Any]:
        if not 0 <= index < len(slots):
            raise Fault(f"there is no slot {index}")
        return [slots[index]]

    def op_memdesc_subslice(self, op: Op, slot: Slot) -> Sequence[Any]:
        offsets = [int(offset) for offset in re.search(r"\[([\d, ]+)\]", op.text)[1].split(",")]  # type: ignore[index]
        sizes = [int(size) for size in re.search(r"-> !ttg.memdesc<(\d+)x(\d+)x", op.text).groups()]  # type: ignore[union-attr]
        return [View(slot, tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True)))]

    def op_local_store(self, op: Op, value: Tensor, slot: Slot) -> Sequence[Any]:
        clock = self.tick()
        self.write(slot, clock, (self, clock[self]), value)
        slot.fenced = False
        return []

    def op_fence_async_shared(self, op: Op) -> Sequence[Any]:
        for value in self.values.values():
            if isinstance(value, Slot) and value.written and value.written[0] is self:
                value.fenced = True
        return []

    # Barriers, copies and products

    def op_init_barrier(self, op: Op, barrier: Barrier) -> Sequence[Any]:
        barrier.count = barrier.arrivals = int(re.search(r", (\d+) :", op.text)[1])  # type: ignore[index]
        return []

    def op_arrive_barrier(self, op: Op, barrier: Barrier, there: int) -> Sequence[Any]:
        if there:
            barrier.arrive(self.tick(), int(re.search(r", (\d+),", op.text)[1]))  # type: ignore[index]
        return []

    def op_barrier_expect(self, op: Op, barrier: Barrier, there: int) -> Sequence[Any]:
        barrier.arrive(self.tick(), 1, int(re.search(r", (\d+),", op.text)[1]))  # type: ignore[index]
        return []

    def op_async_tma_copy_global_to_local(self, op: Op, source: Tensor, *given: Any) -> Sequence[Any]:
        row, column, slot, barrier, _ = given
        rows, columns = block_of(op.text.split("->")[-1])
        content = source.new_zeros(rows, columns)
        inside = source[row : row + rows, column : column + columns]
        content[: inside.shape[0], : inside.shape[1]] = inside
        clock = self.agent()
        self.write(slot, clock, next(reversed(clock.items())), content)
        barrier.arrive(clock, 0, -bytes_of(op.text.split("->")[-1]))
        return []

    def op_async_tma_copy_local_to_global(self, op: Op, target: Tensor, row: int, column: int, slot: Slot) -> Any:
        clock = self.agent()
        content = self.read(slot, clock, next(reversed(clock.items())), proxy=True)
        place = target[row : row + content.shape[0], column : column + content.shape[1]]
        if not place.isnan().all():
            raise Fault("something is stored twice")
        place.copy_(content[: place.shape[0], : place.shape[1]])
        self.stores.append(clock)
        return []

    def op_async_tma_store_wait(self, op: Op) -> Sequence[Any]:
        while len(self.stores) > pending(op):
            merge(self.clock, self.stores.pop(0))
        return []

    def op_warp_group_dot(self, op: Op, a: View | Slot, b: Slot, acc: Any, use: int = 1) -> Sequence[Any]:
        clock = self.agent()
        number, time = next(reversed(clock.items()))
        slot, at = (a.slot, a.at) if isinstance(a, View) else (a, ())
        left, right = (self.read(s, clock, (number, time), proxy=True).float() for s in (slot, b))
        value = (acc.value if isinstance(acc, Product) else acc) if use else 0
        self.products.append((number, clock))
        return [Product(value + left[at] @ right, number)]

    def op_warp_group_dot_wait(self, op: Op, acc: Any) -> Sequence[Any]:
        while len(self.products) > pending(op):
            merge(self.clock, self.products.pop(0)[1])
        flying = isinstance(acc, Product) and any(number is acc.number for number, _ in self.products)
        return [acc if flying else acc.value]

    def op_warp_specialize(self, op: Op, *given: Any) -> Sequence[Any]:
        self.given = given
        return []

    def op_default(self, op: Op) -> Sequence[Any]:
        return self.part(op, {})

    def op_partition0(self, op: Op, *_: Any) -> Sequence[Any]:
        return self.part(op, dict(zip(op.operands, self.given, strict=True)))

    op_partition1 = op_partition0

    def part(self, op: Op, values: dict[str, Any]) -> Sequence[Any]:
        part = Partition(self.values | values, self.tick(), self.program, self.layouts)
        part.lines = part.run(op.regions[0])
        self.parts.append(part)
        return []

    def op_warp_yield(self, op: Op) -> Sequence[Any]:
        if self.products or self.stores:
            raise Fault("a partition ends while something is in flight")
        return []

    op_warp_return = op_warp_yield

    def op_return(self, op: Op) -> Sequence[Any]:
        return []


def block_of(text: str) -> list[int]:
    return [int(size) for size in re.search(r"memdesc<(\d+)x(\d+)x", text).groups()]  # type: ignore[union-attr]


def run(text: str, arguments: Sequence[Any], programs: int, order: Sequence[int]) -> None:
    """Execute all programs of a kernel.

    Args:
        text: the TTGIR.
        arguments: of the kernel, in the order of the TTGIR: numbers, and tensors: matrices behind descriptors, and flat
            arrays behind pointers. Results are written to them, and must be NaN before.
        order: the partitions, the one first that runs as far as it can before any other does.
    """
    names, ops = parse(text)
    values = {
        name: Pointer(value, 0) if "ptr" in kind else value
        for (name, kind), value in zip(names.items(), arguments, strict=True)
    }
    for number in range(programs):
        block = Partition(values, {}, (number, programs), text)
        list(block.run(ops))
        waiting = [block.parts[i] for i in order]
        while waiting:
            for part in waiting:
                before = part.executed
                result = next(part.lines)
                if result is not None:
                    waiting.remove(part)
                    break
                if part.executed > before:
                    break
            else:
                raise Fault("every partition waits", 0)
