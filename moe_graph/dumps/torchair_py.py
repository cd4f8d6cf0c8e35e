"""torchair's "py" dump: the calls that built the graph, as Python. Read as a syntax tree; nothing in it is executed or imported.

What it says less than the other kinds: types and shapes stand only in its comments, on FX nodes; constants are written inside the
calls, one that several operators share once for each; names of nodes are missing where an operator has several outputs. And what it
says more: the line of the model's code. torchair writes the graph as it was lowered into both of its dumps: the "optimized" one of
this kind shows nothing of the optimizer.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from moe_graph.dumps.model import CONTROL, Descriptor, Edge, Graph, Node
from moe_graph.dumps.reading_definition import OUTPUT_TYPE, check, in_order
from moe_graph.dumps.reading_dtypes import BY_NUMBER, BY_WORD, word_of_number
from moe_graph.dumps.reading_errors import DumpError
from moe_graph.dumps.reading_fx import EARLIER, FxNode, fx_node, source_line
from moe_graph.dumps.reading_infer import TRANSPOSES, TRANSPOSING, VIEW, complete
from moe_graph.dumps.reading_signatures import Signature, signature
from moe_graph.dumps.reading_values import LARGEST, known_shape

_MARK = "import ge_apis as ge"
_UNREADABLE_CONSTANT = "ge.Const(, "  # torchair leaves the value out where it was told not to note it
_NAMES = {"inf": math.inf, "nan": math.nan}
# Of a view that is put off, only its sizes are lowered at once, where some of them are symbols.
_SIZES = frozenset({"Pack", "Const"})
_INT64, _FLOAT32 = 9, 0


def looks_like(text: str) -> bool:
    """Does the text begin as torchair's "py" dumps do?"""
    return _MARK in text[:1000]


def graph_of(text: str) -> Graph:
    """The graph a "py" dump builds. Raises DumpError that names the line."""
    text = text.replace(_UNREADABLE_CONSTANT, "ge.Const(None, ")
    try:
        module = ast.parse(text)
        nodes = _Reader().read(text, module)
    except SyntaxError as error:
        raise DumpError(f"line {error.lineno}: not Python ({error.msg}): is the dump cut off?") from error
    except (RecursionError, MemoryError) as error:
        raise DumpError("nested too deep to be a dump of torchair") from error
    except DumpError:
        raise
    except ValueError as error:
        raise DumpError(f"not Python: {error}") from error
    if not nodes or nodes[-1].type != OUTPUT_TYPE:
        raise DumpError(f"the graph does not end with {OUTPUT_TYPE}: not a dump of torchair, or one that is cut off")
    return replace(complete(check(Graph("", tuple(nodes)))), stage="original")


@dataclass
class _Reader:
    """Walks the statements and the comments between them, in the order of their lines."""

    nodes: dict[str, Node] = field(default_factory=dict)
    variables: dict[str, Edge] = field(default_factory=dict)
    constants: int = 0
    source: str = ""
    fx: FxNode | None = None
    lowered: list[str] = field(default_factory=list)  # nodes since the FX comment
    values: dict[str, Edge] = field(default_factory=dict)  # FX node -> the output that holds its value
    several: dict[str, list[Edge]] = field(
        default_factory=dict
    )  # FX node of several operators -> what none of them reads
    picked: Counter[str] = field(default_factory=Counter)  # FX node of several values -> how many of them are used
    transposed: dict[str, bool] = field(default_factory=dict)  # FX node without nodes of its own -> does it transpose?

    def read(self, text: str, module: ast.Module) -> list[Node]:
        comments = [(at, line) for at, line in enumerate(text.splitlines(), 1) if line.startswith("#")]
        for _, line in comments:
            found = fx_node(line)
            if found is not None and found.output is not None and found.arguments:
                self.picked[found.arguments[0]] = max(self.picked[found.arguments[0]], found.output + 1)
        events = sorted([*comments, *((s.lineno, s) for s in module.body)], key=lambda event: event[0])
        for line, event in events:
            if isinstance(event, str):
                self._comment(event)
            elif not isinstance(event, (ast.Import, ast.ImportFrom)):
                self._statement(event, line)
        self._close()
        return list(self.nodes.values())

    def _comment(self, comment: str) -> None:
        source = source_line(comment)
        if source:
            self._close()
            self.source = source
        elif (found := fx_node(comment)) is not None:
            if self.fx is not None:
                self._close()
                self.source += EARLIER if self.source and not self.source.endswith(EARLIER) else ""
            self.fx, self.lowered = found, []

    def _close(self) -> None:
        """The statements of the FX node are over: its value is the last one's output, or a view of its first argument."""
        found, self.fx = self.fx, None
        if found is None:
            return
        if self.lowered and not all(self.nodes[name].type in _SIZES for name in self.lowered):
            last = self.nodes[self.lowered[-1]]
            if found.result is not None or len(self.lowered) == 1 or len(last.outputs) > 1:
                self.values[found.name] = Edge(last.name)
            else:
                self.several[found.name] = self._unread()
            if any(self.transposed.get(name) for name in found.arguments):
                for name in self.lowered:
                    if self.nodes[name].type in TRANSPOSES:
                        self.nodes[name] = replace(self.nodes[name], fx=f"{VIEW}{found}")
        elif found.output is not None and found.arguments and found.arguments[0] in self.several:
            # Several values from several operators: what none of these operators reads, if there are as many of it.
            unread = self.several[found.arguments[0]]
            if len(unread) == self.picked[found.arguments[0]]:
                self.values[found.name] = unread[found.output]
        elif found.arguments:
            base = found.arguments[0]
            edge = self.values.get(base, Edge(base))
            self.values[found.name] = Edge(edge.node, edge.output if found.output is None else found.output)
            self.transposed[found.name] = self.transposed.get(base, False) or found.target in TRANSPOSING
        self._describe(found)
        self.lowered = []

    def _unread(self) -> list[Edge]:
        """The outputs of the operators of this FX node that none of them reads, in order."""
        read = {edge for name in self.lowered for edge in self.nodes[name].inputs}
        outputs = (Edge(name, at) for name in self.lowered for at in range(len(self.nodes[name].outputs)))
        return [edge for edge in outputs if edge not in read]

    def _describe(self, found: FxNode) -> None:
        edge = self.values.get(found.name)
        node = self.nodes.get(edge.node) if edge is not None else None
        if found.result is None or node is None or node.type == "Data" or edge.output >= len(node.outputs):
            return
        outputs = list(node.outputs)
        outputs[edge.output] = replace(outputs[edge.output], dtype=found.result.dtype, shape=found.result.shape)
        self.nodes[node.name] = replace(node, outputs=tuple(outputs))

    def _statement(self, statement: ast.stmt, line: int) -> None:
        value = statement.value if isinstance(statement, (ast.Assign, ast.Expr)) else None
        kind = _function(value)
        if value is None or not kind:
            shown = " ".join(ast.unparse(statement).split())[:60]
            raise DumpError(f"line {line}: {shown!r} is not a call of a GE operator as torchair writes it")
        targets = [
            element.id
            for t in getattr(statement, "targets", ())
            for element in ast.walk(t)
            if isinstance(element, ast.Name)
        ]
        targets = [target for target in targets if target != "_"]
        keywords = {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
        name = _literal(keywords.pop("node_name")) if "node_name" in keywords else None
        if name is None:
            name = targets[0].rpartition("_")[0] if targets else self._free(kind)
        if kind == OUTPUT_TYPE:
            self._close()
        if not isinstance(name, str) or not name or name in self.nodes:
            raise DumpError(f"line {line}: a second node named {name!r}, or no name")
        node = self._node(name, kind, value.args, keywords, line)
        outputs = node.outputs or tuple(Descriptor("", None) for _ in targets)
        for target in targets:
            at = target.rpartition("_")[2]
            self.variables[target] = Edge(name, int(at) if at.isdigit() else 0)
        self.nodes[name] = replace(
            node,
            outputs=outputs,
            source=(self.source,) if self.fx is not None and self.source else (),
            fx=str(self.fx) if self.fx is not None else "",
        )
        if self.fx is not None:
            self.lowered.append(name)

    def _node(self, name: str, kind: str, args: list[ast.expr], keywords: dict[str, ast.expr], line: int) -> Node:
        dependencies = keywords.pop("dependencies", None)
        controls = [
            Edge(self._edge(element, line).node, CONTROL)
            for element in getattr(dependencies, "elts", ())
            if self._is_tensor(element)
        ]
        if kind in ("Data", "RefData"):
            return _data(name, kind, {key: _literal(value) for key, value in keywords.items()})
        if kind == "Const":
            return _const(
                name, [_literal(value) for value in args], {key: _literal(value) for key, value in keywords.items()}
            )
        if kind == OUTPUT_TYPE:
            edges = [self._edge(element, line) for element in getattr(args[0], "elts", ())] if args else []
            outputs = tuple(self._described(edge) for edge in edges)
            names = tuple(f"input{at}" for at in range(len(edges)))
            return Node(name, kind, in_order([*edges, *controls]), names, outputs)
        declared = signature(kind)
        given = self._inputs(declared, args, keywords)
        known = [
            self._described(self.variables[e.id]).dtype
            for _, e, _ in given
            if isinstance(e, ast.Name) and e.id in self.variables
        ]
        edges = [self._input(element, index, known, line) for _, element, index in given]
        tensors = tuple(None if edge is None else self._described(edge) for edge in edges)
        attributes = dict(declared.attributes) if declared is not None else {}
        attributes.update({key: _literal(value) for key, value in keywords.items()})
        attributes = {
            key: value if declared is None else declared.value(key, value)
            for key, value in sorted(attributes.items())
            if value is not None
        }
        names = tuple(name for name, _, _ in given)
        return Node(name, kind, in_order([*edges, *controls]), names, (), attributes, input_tensors=tensors)

    def _inputs(
        self, declared: Signature | None, args: list[ast.expr], keywords: dict[str, ast.expr]
    ) -> list[tuple[str, ast.expr, bool]]:
        """The inputs that are given: name, expression, "a number for it is int64". Removes them from `keywords`."""
        if declared is None:  # positional arguments are inputs, a list that holds tensors is a dynamic one
            found = []
            for arg in args:
                many = isinstance(arg, ast.List) and any(map(self._is_tensor, arg.elts))
                found += [("", element, False) for element in (arg.elts if many else (arg,))]
            for key in [key for key, value in keywords.items() if self._is_tensor(value)]:
                found.append((key, keywords.pop(key), False))
            return found
        found = []
        for at, declaration in enumerate(declared.inputs):
            value = args[at] if at < len(args) else keywords.pop(declaration.name, None)
            if declaration.dynamic:
                elements = getattr(value, "elts", ())
                found += [(f"{declaration.name}{i}", element, declaration.index) for i, element in enumerate(elements)]
            elif value is not None:
                found.append((declaration.name, value, declaration.index))
        return found

    def _input(self, element: ast.expr, index: bool, known: list[str], line: int) -> Edge | None:
        if isinstance(element, ast.Constant) and element.value is None:
            return None
        if self._is_tensor(element):
            return self._edge(element, line)
        if _function(element) == "Const":
            keywords = {keyword.arg: _literal(keyword.value) for keyword in element.keywords if keyword.arg}
            return self._constant([_literal(value) for value in element.args], keywords)
        value = _literal(element)
        return self._constant([value], {"dtype": _INT64 if index else _promoted(value, known)})

    def _constant(self, args: list[Any], keywords: dict[str, Any]) -> Edge:
        name = self._free("Const")
        self.nodes[name] = _const(name, args, keywords)
        return Edge(name)

    def _free(self, kind: str) -> str:
        if kind != "Const":
            return next(
                name for at in range(len(self.nodes) + 1) if (name := f"{kind}_{at}" if at else kind) not in self.nodes
            )
        name = f"Const_{self.constants}" if self.constants else "Const"
        self.constants += 1
        return name

    def _is_tensor(self, element: ast.expr) -> bool:
        return isinstance(element, ast.Name) and element.id not in _NAMES

    def _edge(self, element: ast.expr, line: int) -> Edge:
        found = self.variables.get(element.id) if isinstance(element, ast.Name) else None
        if found is None:
            raise DumpError(f"line {line}: {ast.unparse(element)[:40]!r} is used, but no operator gave it")
        return found

    def _described(self, edge: Edge) -> Descriptor:
        outputs = self.nodes[edge.node].outputs
        return outputs[edge.output] if edge.output < len(outputs) else Descriptor("", None)


def _function(value: ast.AST | None) -> str:
    """X of a call of ge.X; "" of anything else."""
    function = value.func if isinstance(value, ast.Call) else None
    named = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "ge"
    return function.attr if named else ""


def _data(name: str, kind: str, values: dict[str, Any]) -> Node:
    shape, dtype = values.get("shape"), _number_of_type(name, values.get("dtype"))
    sizes = None if not isinstance(shape, (list, tuple)) else known_shape(shape)
    desc = Descriptor(word_of_number(dtype), sizes, str(values.get("format", "ND")), str(values.get("placement", "")))
    return Node(name, kind, (), ("x",), (desc,), {"index": values["index"]} if "index" in values else {})


def _const(name: str, args: list[Any], keywords: dict[str, Any]) -> Node:
    """A constant, its elements rounded to its type as torchair rounds them."""
    value = args[0] if args else keywords.get("v")
    number = _number_of_type(name, keywords.get("dtype", args[1] if len(args) > 1 else None))
    number = _promoted(value, []) if number is None else number
    dtype, shape = word_of_number(number), None
    ge_type = BY_NUMBER.get(number)
    torch_type = None if ge_type is None else ge_type.torch
    import torch

    try:
        # Without a type of torch's, torch's own choice tells the shape.
        tensor = torch.tensor(value, dtype=torch_type)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        pass  # a value the dump only hints at: kept as it is written
    else:
        shape = tuple(tensor.shape)
        if tensor.numel() <= LARGEST and torch_type is not None:
            narrow = tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64)
            value = (tensor.float() if narrow else tensor).tolist()
    return Node(name, "Const", (), (), (Descriptor(dtype, shape, "ND"),), {"value": value})


def _promoted(value: Any, known: list[str]) -> int:
    """GE's number of the type torchair gives a number it makes a constant of: that of the tensors beside it, if they agree."""
    first = value
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, float):
        candidates = {d for d in known if d in ("bfloat16", "float16", "float32", "float64")}
        default = _FLOAT32 if first is value else 11
    elif isinstance(first, int) and not isinstance(first, bool):
        candidates = {d for d in known if d in ("int8", "uint8", "int32", "uint32", "int64")}
        default = _INT64
    else:
        return 12 if isinstance(first, bool) else 3
    return BY_WORD[candidates.pop()].number if len(candidates) == 1 else default


def _checked(value: Any) -> Any:
    """A constant of the text: whole numbers of 64 bits, and text that can be shown, without halves of characters."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise DumpError("a whole number beyond 64 bits")
    return value


def _number_of_type(name: object, value: Any) -> int | None:
    """GE's number of a data type. Raises DumpError if the text has something else there."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise DumpError(f"node {name!r}: dtype must be the number of a data type, got {value!r}")
    return value


def _literal(element: ast.expr) -> Any:
    """The value a literal stands for; what is no literal stays text. Calls nothing."""
    if isinstance(element, ast.Constant):
        return _checked(element.value)
    if isinstance(element, (ast.List, ast.Tuple)):
        return [_literal(inner) for inner in element.elts]
    if isinstance(element, ast.UnaryOp) and isinstance(element.op, ast.USub):
        value = _literal(element.operand)
        return -value if isinstance(value, (int, float, complex)) else f"-{value}"
    if isinstance(element, ast.Name) and element.id in _NAMES:
        return _NAMES[element.id]
    if (
        isinstance(element, ast.Call)
        and isinstance(element.func, ast.Name)
        and element.func.id == "tensor"
        and element.args
    ):
        return _literal(element.args[0])
    return re.sub(r"\s+", " ", ast.unparse(element))
