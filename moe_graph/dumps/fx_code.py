"""FX graphs as code: torchair's "py" dump of the mode that captures, and what `GraphModule.print_readable` prints.

Read as a syntax tree; nothing in it is executed or imported. Each call is a node whose type is the operator ("aten.mm.default"); what
picks one of several results is an output of the node that gives them. An operator that writes in place hands on what it wrote: who
reads that tensor after it, reads from it. Sizes of a dynamic graph are inputs on the host.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moe_graph.dumps.model import Descriptor, Edge, Graph, Node
from moe_graph.dumps.reading_definition import MOST_OUTPUTS, OUTPUT_TYPE, check
from moe_graph.dumps.reading_errors import DumpError
from moe_graph.dumps.reading_values import fx_sizes

_HEAD = re.compile(
    r"(?:\s*(?:#.*)?\n)*\s*class (?P<name>[^\s(]+)\((?:torch\.nn\.|nn\.)?Module\):\s*\n(?:\s*#.*\n|\s*\n)*\s+def forward\("
)
_SOURCE = re.compile(r"\s*# File: (?P<file>.*?):(?P<line>\d+) in (?P<function>[^,]+)")
_NO_SOURCE = re.compile(r"\s*# No stacktrace found")
# "f32[8, s0]", with strides and device if they were asked for: "f32[8, s0][1, 8]npu:0".
_TENSOR = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<sizes>[^\]]*)\](?:\[[^\]]*\])?(?P<device>[a-z]*)(?::\d+)?$")
_SYMBOL = re.compile(r"Sym|SymInt|Sym\(.*\)$")
_DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "c32": "complex32", "c64": "complex64",
    "c128": "complex128", "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u64": "uint64", "u32": "uint32",
    "u16": "uint16", "u8": "uint8", "b8": "bool", "f8e4m3fn": "float8_e4m3fn", "f8e5m2": "float8_e5m2",
    "f8e4m3fnuz": "float8_e4m3fnuz", "f8e5m2fnuz": "float8_e5m2fnuz", "f8e8m0fnu": "float8_e8m0fnu",
    "f4e2m1fnx2": "float4_e2m1fn_x2",
}  # fmt: skip
_DEVICES = {"npu": "NPU", "cpu": "CPU", "": ""}
_OPERATORS = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv", ast.Mod: "mod", ast.Pow: "pow",
    ast.MatMult: "matmul", ast.LShift: "lshift", ast.RShift: "rshift", ast.BitAnd: "and_", ast.BitOr: "or_", ast.BitXor: "xor",
    ast.USub: "neg", ast.UAdd: "pos", ast.Invert: "invert", ast.Not: "not_", ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt",
    ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Is: "is_", ast.IsNot: "is_not",
}  # fmt: skip
# "aten.add_.Tensor" writes into its first argument; "aten.__and__.Tensor" does not.
_IN_PLACE = re.compile(r"(?!operator\.)\w+\.\w*[A-Za-z0-9]_(\.\w+)?$")
_NUMBERS = {"inf": math.inf, "nan": math.nan}


def looks_like(text: str) -> bool:
    """Does the text begin as the code of an FX graph?"""
    return _HEAD.match(text) is not None


def from_fx(module: Any) -> Graph:
    """A `torch.fx.GraphModule` as a Graph, without the graphs inside it (branches). Raises DumpError if its code is not that of a graph."""
    return replace(graphs_of(module.print_readable(print_output=False))[0], name=module._get_name())


def graphs_of(text: str) -> list[Graph]:
    """The graph of a piece of FX code, then those of the modules inside it (branches), named "OUTER.inner"; the outer's name is ""."""
    header = _HEAD.match(text)
    assert header is not None, "asked before"
    text = f"{text[: header.start('name')]}graph{text[header.end('name') :]}"  # "<lambda>" is no name in Python
    try:
        module = ast.parse(text)
        classes = [statement for statement in module.body if isinstance(statement, ast.ClassDef)]
        return [graph for outer in classes for graph in _graphs(outer, "", text.splitlines())]
    except SyntaxError as error:
        raise DumpError(f"line {error.lineno}: not Python ({error.msg}): is the dump cut off?") from error
    except (RecursionError, MemoryError) as error:
        raise DumpError("nested too deep to be the code of an FX graph") from error


def _graphs(outer: ast.ClassDef, name: str, lines: list[str]) -> Iterator[Graph]:
    inner = [statement for statement in outer.body if isinstance(statement, ast.ClassDef)]
    forward = [s for s in outer.body if isinstance(s, ast.FunctionDef) and s.name == "forward"]
    if len(forward) != 1:
        raise DumpError(f"line {outer.lineno}: a graph without its forward, or with two")
    nodes = _Reader(frozenset(one.name for one in inner), lines).read(forward[0])
    yield check(Graph(name, tuple(nodes)))
    for one in inner:
        yield from _graphs(one, f"{name}.{one.name}" if name else one.name, lines)


@dataclass
class _Reader:
    """Walks the statements of one forward, in order."""

    graphs: frozenset[str]  # names of the graphs inside
    lines: list[str]
    nodes: dict[str, Node] = field(default_factory=dict)
    values: dict[str, Edge] = field(default_factory=dict)  # what a name stands for
    inside: dict[str, str] = field(default_factory=dict)  # name -> the graph inside that it stands for
    several: set[str] = field(default_factory=set)  # names of what is no tensor, but results to pick from
    source: str = ""
    at: int = 0  # lines whose comments are read

    def read(self, forward: ast.FunctionDef) -> list[Node]:
        self.at = forward.lineno
        arguments = [*forward.args.posonlyargs, *forward.args.args, *forward.args.kwonlyargs]
        arguments += [one for one in (forward.args.vararg, forward.args.kwarg) if one is not None]
        for index, argument in enumerate(argument for argument in arguments if argument.arg != "self"):
            described = _described(argument.annotation)
            self._add(Node(argument.arg, "Data", (), ("x",), (described,), {"index": index}))
        for statement in forward.body:
            if OUTPUT_TYPE in self.nodes:
                raise DumpError(f"line {statement.lineno}: the graph goes on after its return")
            self._comments(statement.lineno)
            self._statement(statement)
        if OUTPUT_TYPE not in self.nodes:
            raise DumpError("the graph has no return: is the dump cut off?")
        return list(self.nodes.values())

    def _comments(self, line: int) -> None:
        for text in self.lines[self.at : line - 1]:
            found = _SOURCE.match(text)
            if found is not None:
                self.source = f"{found['file']}:{found['line']} in {found['function']}"
            elif _NO_SOURCE.match(text):
                self.source = ""
        self.at = line

    def _statement(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Return):
            operands = self._operands([("", statement.value)])
            names = tuple(f"input{at}" for at in range(len(operands.edges)))
            outputs = tuple(self._output(edge) for edge in operands.edges)
            self._add(Node(OUTPUT_TYPE, OUTPUT_TYPE, tuple(operands.edges), names, outputs))
            return
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or len(names) != len(targets) or value is None:
            raise DumpError(f"line {statement.lineno}: {_shown(statement)!r} is not a node of an FX graph")
        if isinstance(value, ast.Constant) and value.value is None:
            return  # "a = b = None": nobody reads them from here on
        self._node(names[0], value, _described(getattr(statement, "annotation", None)))

    def _node(self, name: str, value: ast.expr, described: Descriptor) -> None:
        if not described.dtype:
            self.several.add(name)
        if self._is_pick(value):
            self._pick(name, self.values[value.value.id].node, value.slice.value, described)
            return
        kind, given = _call(value, self.values)
        if not given and isinstance(value, ast.Attribute) and kind.startswith("self."):
            attribute = kind[len("self.") :]
            if attribute in self.graphs:
                self.inside[name] = attribute
            else:
                self._add(Node(name, "Const", outputs=(described,), attributes={"value": attribute}))
            return
        operands = self._operands(given)
        node = Node(
            name,
            kind,
            tuple(operands.edges),
            tuple(operands.names),
            (described,) if described.dtype else (),
            operands.attributes,
            (self.source,) if self.source else (),
            f"{name}: {kind}",
        )
        self._add(node)
        if given and isinstance(given[0][1], ast.Name) and _IN_PLACE.match(kind) and given[0][1].id in self.values:
            self.values[given[0][1].id] = Edge(name)

    def _is_pick(self, value: ast.expr) -> bool:
        """Is it `x[3]`, where x is a node of several results?"""
        return (
            isinstance(value, ast.Subscript)
            and isinstance(value.value, ast.Name)
            and value.value.id in self.several
            and value.value.id in self.nodes
            and isinstance(value.slice, ast.Constant)
            and type(value.slice.value) is int
        )

    def _pick(self, name: str, base: str, output: int, described: Descriptor) -> None:
        node = self.nodes[base]
        if not 0 <= output < MOST_OUTPUTS:
            raise DumpError(f"{name} is output {output} of {base}, which no operator has")
        outputs = list(node.outputs) + [Descriptor("", None)] * (output + 1 - len(node.outputs))
        outputs[output] = described
        self.nodes[base] = replace(node, outputs=tuple(outputs))
        self.values[name] = Edge(base, output)

    def _add(self, node: Node) -> None:
        if node.name in self.nodes or node.name in self.values:
            raise DumpError(f"two nodes are named {node.name!r}")
        self.nodes[node.name] = node
        self.values[node.name] = Edge(node.name)

    def _output(self, edge: Edge) -> Descriptor:
        outputs = self.nodes[edge.node].outputs
        return outputs[edge.output] if edge.output < len(outputs) else Descriptor("", None)

    def _operands(self, given: list[tuple[str, ast.expr]]) -> _Operands:
        found = _Operands()
        for name, value in given:
            before = len(found.edges)
            plain = self._plain(name, value, found)
            # A tensor, or a list of them, is an input and no attribute.
            if plain is not None and not _only_inputs(plain, len(found.edges) - before):
                found.attributes[name] = plain
        return found

    def _plain(self, name: str, value: ast.expr, found: _Operands) -> Any:
        """The argument in Python's types; a tensor or size in it is an input and stands as "input 3" there."""
        if isinstance(value, ast.Name) and value.id in self.values:
            found.edges.append(self.values[value.id])
            found.names.append(name)
            return _Input(f"input {len(found.edges) - 1}")
        if isinstance(value, ast.Name) and value.id in self.inside:
            return self.inside[value.id]
        if isinstance(value, (ast.List, ast.Tuple)):
            return [self._plain(f"{name}[{at}]", inner, found) for at, inner in enumerate(value.elts)]
        if isinstance(value, ast.Dict):
            return {
                _shown(key): self._plain(f"{name}[{_shown(key)}]", inner, found)
                for key, inner in zip(value.keys, value.values)
                if key is not None
            }
        if isinstance(value, ast.Call):  # slice(None, s0), a pytree
            arguments = {_shown(one): self._plain(f"{name}.{at}", one, found) for at, one in enumerate(value.args)}
            if any(isinstance(inner, (_Input, list, dict)) for inner in arguments.values()):
                return {_shown(value.func): list(arguments.values())}
        if (
            isinstance(value, ast.UnaryOp)
            and isinstance(value.op, ast.USub)
            and isinstance(value.operand, ast.Constant)
        ):
            return -value.operand.value if isinstance(value.operand.value, (int, float, complex)) else _shown(value)
        if isinstance(value, ast.Constant):
            return value.value
        if isinstance(value, ast.Name) and value.id in _NUMBERS:
            return _NUMBERS[value.id]
        return _shown(value)


@dataclass
class _Operands:
    edges: list[Edge] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)


class _Input(str):
    """Stands for an input among the values of an argument."""


def _only_inputs(value: Any, count: int) -> bool:
    return isinstance(value, _Input) or (isinstance(value, list) and count > 0 and all(map(_is_input, value)))


def _is_input(value: Any) -> bool:
    return isinstance(value, _Input)


def _call(value: ast.expr, known: Mapping[str, Edge]) -> tuple[str, list[tuple[str, ast.expr]]]:
    """The operator that an expression calls, and its arguments by name; by position where they have none."""
    if isinstance(value, ast.Call):
        kind = _shown(value.func)
        keywords = [(keyword.arg or "**", keyword.value) for keyword in value.keywords]
        arguments = list(value.args)
        if (
            isinstance(value.func, ast.Attribute)
            and isinstance(value.func.value, ast.Name)
            and value.func.value.id in known
        ):
            kind, arguments = f"Tensor.{value.func.attr}", [value.func.value, *arguments]
        return _operator(kind), [*((str(at), argument) for at, argument in enumerate(arguments)), *keywords]
    if isinstance(value, ast.Subscript):
        return "operator.getitem", [("0", value.value), ("1", value.slice)]
    if isinstance(value, (ast.BinOp, ast.UnaryOp)):
        operands = [value.left, value.right] if isinstance(value, ast.BinOp) else [value.operand]
        return _python(value.op), [(str(at), operand) for at, operand in enumerate(operands)]
    if isinstance(value, ast.Compare) and len(value.ops) == 1:
        return _python(value.ops[0]), [("0", value.left), ("1", value.comparators[0])]
    if isinstance(value, ast.Attribute):
        base = value
        while isinstance(base.value, ast.Attribute):
            base = base.value
        if isinstance(base.value, ast.Name) and base.value.id == "self":
            return _shown(value), []
        return "getattr", [("0", value.value), ("1", ast.Constant(value.attr))]
    raise DumpError(f"line {value.lineno}: {_shown(value)!r} is not a node of an FX graph")


def _operator(name: str) -> str:
    return name[len("torch.ops.") :] if name.startswith("torch.ops.") else name


def _python(operation: ast.AST) -> str:
    return f"operator.{_OPERATORS.get(type(operation), type(operation).__name__.lower())}"


def _described(annotation: ast.expr | None) -> Descriptor:
    """What print_readable notes on a value: a tensor's type and sizes; a size, which is a number on the host; or nothing."""
    note = annotation.value if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str) else ""
    found = _TENSOR.match(note)
    if found is not None:
        dtype = _DTYPES.get(found["dtype"], found["dtype"])
        return Descriptor(
            dtype, fx_sizes(found["sizes"]), device=_DEVICES.get(found["device"], found["device"].upper())
        )
    return Descriptor("int64", (), device="CPU") if _SYMBOL.match(note) else Descriptor("", None)


def _shown(node: ast.AST | None) -> str:
    return "" if node is None else " ".join(ast.unparse(node).split())
