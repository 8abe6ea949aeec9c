"""The traffic of a compiled program, read from its text (scheduled HLO). A loop's body counts once per iteration.

XLA's own cost analysis counts a body once. The number of iterations is known for loops ``i < constant``, such as scans
and maps; any other loop counts once, and ``Traffic.uncounted_loops`` is the number of such loops.
"""

import collections
import dataclasses
import functools
import math
import re

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Operations that move no bytes, or whose bodies are counted instead.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "conditional", "call"),
    *("partition-id", "iota", "async-done", "async-update", "copy-done", "optimization-barrier"),
}
BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0}
_SHAPE = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (\(.*?\) |\S+ )([\w-]+)\((.*)$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of HLO: name, result type, operation, names of the operands, the text from the operands on."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    root: bool

    def called(self, attribute: str) -> str | None:
        """The name of the computation in an attribute; None without that attribute."""
        match = re.search(rf"\b{attribute}=%?([\w.-]+)", self.text)
        return match.group(1) if match else None


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that one device moves in one run of a program.

    collectives: kind -> (executions, bytes that the device sends over its links). hbm: bytes that operations read and
    write in the chip's main memory. uncounted_loops: number of loops whose iterations are not known.
    """

    collectives: dict[str, tuple[int, float]]
    hbm: float
    uncounted_loops: int


class Program:
    """The computations of an HLO module, parsed from its text, and how often each runs."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        body: list[Instruction] = []
        for line in text.splitlines():
            if computation := _COMPUTATION.match(line):
                body = self.computations.setdefault(computation.group(2), [])
                self.entry = computation.group(2) if computation.group(1) else self.entry
            elif instruction := _INSTRUCTION.match(line):
                root, name, shape, opcode, rest = instruction.groups()
                operands = tuple(re.findall(r"%([\w.-]+)", _arguments(rest)))
                body.append(Instruction(name, shape, opcode, operands, rest, bool(root)))
        self.uncounted_loops = 0
        self.runs: collections.Counter[str] = collections.Counter()  # computation -> executions
        self.outer: set[str] = set()  # computations that are not inside a fused operation
        self._count(self.entry, 1, True)

    def _count(self, name: str, times: int, outer: bool) -> None:
        self.runs[name] += times
        if outer:
            self.outer.add(name)
        for instruction in self.computations.get(name, ()):
            if instruction.opcode == "while":
                self._count(instruction.called("body") or "", times * self._iterations(instruction), outer)
            elif instruction.opcode == "conditional":
                for branch in re.findall(r"%([\w.-]+)", _attribute(instruction.text, "branch_computations")):
                    self._count(branch, times, outer)
            elif called := instruction.called("calls"):
                self._count(called, times, False)
            elif instruction.opcode == "call" and (called := instruction.called("to_apply")):
                self._count(called, times, outer)

    def _iterations(self, loop: Instruction) -> int:
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(known.group(1))
        condition = self.computations.get(loop.called("condition") or "", [])
        bounds = [re.match(r"(\d+)\)", i.text) for i in condition if i.opcode == "constant"]
        if [i.opcode for i in condition if i.root] == ["compare"] and len(bounds) == 1 and bounds[0]:
            return int(bounds[0].group(1))
        self.uncounted_loops += 1
        return 1

    def traffic(self, devices: int) -> Traffic:
        """The traffic of a device when the program runs on ``devices`` devices."""
        hbm = sum(self.runs[name] * self._moved(name) for name in self.outer)
        return Traffic(self._collectives(devices), hbm, self.uncounted_loops)

    def _collectives(self, devices: int) -> dict[str, tuple[int, float]]:
        # A collective that overlaps with other work appears in several fused operations, with one channel id.
        largest: dict[str, tuple[str, int, float]] = {}  # channel -> (kind, executions, bytes of one)
        for name, times in self.runs.items():
            scattered = name.startswith("all-reduce-scatter")  # XLA for TPU names a fused reduce-scatter so
            for instruction in self.computations.get(name, ()):
                kind = instruction.opcode.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                kind = "reduce-scatter" if scattered else kind
                channel = re.search(r"channel_id=(\d+)", instruction.text)
                key = f"{kind} {channel.group(1)}" if channel else f"{name} {instruction.name}"
                sent = self._sent(kind, scattered, instruction, name, devices)
                if key not in largest or times * sent > largest[key][1] * largest[key][2]:
                    largest[key] = kind, times, sent
        totals: dict[str, tuple[int, float]] = {}
        for kind, times, sent in largest.values():
            count, total = totals.get(kind, (0, 0.0))
            totals[kind] = count + times, total + times * sent
        return totals

    def _sent(self, kind: str, scattered: bool, instruction: Instruction, name: str, devices: int) -> float:
        """Bytes that a device sends in a collective on a ring, which is the minimum."""
        group = _group_size(instruction.text, devices)
        if kind == "collective-permute":
            return _largest(instruction)
        share = (group - 1) / group
        if kind == "reduce-scatter" and not scattered:
            shapes = self._shapes(name)
            return share * sum(size_of(shapes[operand]) for operand in instruction.operands if operand in shapes)
        return (2 if kind == "all-reduce" else 1) * share * _largest(instruction)

    @functools.cache  # noqa: B019 (a Program lives as long as one plan)
    def _shapes(self, name: str) -> dict[str, str]:
        return {instruction.name: instruction.shape for instruction in self.computations[name]}

    def _moved(self, name: str) -> float:
        """Bytes that the operations of a computation, which is not fused, read and write in main memory."""
        shapes = self._shapes(name)
        total = 0.0
        for instruction in self.computations[name]:
            if instruction.opcode in FREE:
                continue
            inside = self.computations.get(instruction.called("calls") or "", [])
            if instruction.opcode == "fusion" and inside:
                read, written = _sliced(inside)
            else:
                read, written = _sliced([dataclasses.replace(instruction, root=True)])
            for i, operand in enumerate(instruction.operands):
                key = i if instruction.opcode == "fusion" else operand
                shape = shapes.get(operand, "")
                total += min(read.get(key, math.inf), size_of(shape, hbm_only=True))
            total += min(written, size_of(instruction.shape, hbm_only=True))
        return total


def _sliced(body: list[Instruction]) -> tuple[dict[int | str, float], float]:
    """The bytes that a fused operation reads and writes where it uses slices of arrays.

    Returns the bytes read of each operand of which only slices are used (key: number of a parameter, or name), and the
    bytes written if the result is an updated slice of an operand, else infinity.
    """
    shapes = {instruction.name: instruction.shape for instruction in body}
    uses: dict[str, list[Instruction]] = collections.defaultdict(list)
    for instruction in body:
        for operand in instruction.operands:
            uses[operand].append(instruction)
    read: dict[int | str, float] = {}

    def record(key: int | str, name: str) -> None:
        users = uses[name]
        if not users or any(user.operands[0] != name for user in users):
            return
        if all(user.opcode == "dynamic-slice" for user in users):
            read[key] = sum(size_of(user.shape) for user in users)
        elif all(user.opcode == "dynamic-update-slice" for user in users):
            read[key] = 0.0

    for instruction in body:
        if instruction.opcode == "parameter":
            record(int(re.match(r"\d+", instruction.text).group()), instruction.name)  # type: ignore[union-attr]
    root = next((instruction for instruction in body if instruction.root), None)
    if root is not None and root.opcode == "dynamic-update-slice":
        return read, size_of(shapes.get(root.operands[1], "")) if root.operands[1] in shapes else math.inf
    return read, math.inf


def size_of(shape: str, hbm_only: bool = False) -> float:
    """Bytes of an HLO type; tuples are summed. With ``hbm_only``, arrays in on-chip memory count 0."""
    total = 0.0
    for dtype, dimensions, layout in _SHAPE.findall(shape):
        if hbm_only and "S(" in layout:
            continue
        bits = BITS.get(dtype) if dtype in BITS else int(re.findall(r"\d+", dtype)[0])
        total += math.prod(int(d) for d in dimensions.split(",") if d) * (bits or 0) / 8
    return total


def _largest(instruction: Instruction) -> float:
    """Bytes of a collective's result. The result of a ``-start`` operation is a tuple that also has the operands."""
    if instruction.opcode.endswith("-start"):
        return max((size_of(f"{d}[{s}]") for d, s, _ in _SHAPE.findall(instruction.shape)), default=0.0)
    return size_of(instruction.shape)


def _group_size(text: str, devices: int) -> int:
    """The number of devices that a collective runs over."""
    if named := re.search(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named.group(2)))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed.group(1).split(","))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(iota.group(2))
    return devices


def _arguments(rest: str) -> str:
    """The text up to the parenthesis that closes an operation's operands."""
    depth = 1
    for i, letter in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if not depth:
            return rest[:i]
    return rest


def _attribute(text: str, name: str) -> str:
    match = re.search(rf"{name}=\{{(.*?)\}}", text)
    return match.group(1) if match else ""
