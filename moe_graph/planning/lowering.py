"""Lower a module for the NPU with torchair as it is, on tensors without memory: the graph, and nothing is run.

torchair lowers by shapes alone; only what comes after, the loading and the run, asks for memory. So a compiled function that is given
fake tensors is lowered, its graph is kept, and its outputs are fake, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from moe_graph.engine import graph as ge_graph
from moe_graph.planning import fakes, formats

DUMP_KINDS = ("txt", "pbtxt", "py")


@dataclass(frozen=True)
class LoweredGraph:
    """A graph as torchair would have loaded or captured it.

    Attributes:
        name: torchair's name of it
        definition: its protobuf GraphDef; None in the mode that captures
        module: the FX graph that was lowered, in the mode that captures the one that is run, after torchair's passes
        inputs: what the compiled function was called with, in the order of the FX graph's placeholders: fake tensors and numbers
        ge_inputs: what GE is fed with, in the order of the definition's inputs
        source_lines: the line of the program that an FX node came from, by the node's name
    """

    name: str
    definition: Any
    module: torch.fx.GraphModule
    inputs: tuple[Any, ...]
    ge_inputs: tuple[Tensor, ...] = ()
    source_lines: dict[str, str] = field(default_factory=dict)


@contextmanager
def recorded(graphs: list[LoweredGraph], dump: str | Path | None = None) -> Iterator[None]:
    """Inside the block, what torchair compiles is called without being run where it is called with fake tensors.

    `graphs` takes each graph, when it is called first; into the folder `dump` they are written in every kind of torchair's, as lowered
    ("original") and after its passes ("optimized").
    """
    from torchair._acl_concrete_graph.fx2acl_converter import AclConcreteGraph
    from torchair._ge_concrete_graph.fx2ge_converter import GeConcreteGraph
    from torchair.npu_fx_compiler import _NpuFxCompiler

    generate = _NpuFxCompiler._gen_compiled_gm

    def keeping(self: Any, gm: torch.fx.GraphModule, example_inputs: Any, observer: Any) -> Any:
        concrete = generate(self, gm, example_inputs, observer)
        if isinstance(concrete, _Runner):  # a block around this one
            concrete = concrete.concrete
        return _Runner(concrete, gm, graphs, dump)

    changed: list[tuple[Any, str, Any]] = [
        (_NpuFxCompiler, "_gen_compiled_gm", keeping),
    ]
    if dump is not None:
        Path(dump).mkdir(parents=True, exist_ok=True)
        for kind in (GeConcreteGraph, AclConcreteGraph):
            changed.append((kind, "optimize_graph_without_runtime", _dumping(kind, dump)))
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in changed]
    for owner, name, value in changed:
        setattr(owner, name, value)
    try:
        with fakes.modules_convert(), formats.noted():
            yield
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)


def _dumping(kind: type, folder: str | Path) -> Callable[..., None]:
    optimize: Any = kind.optimize_graph_without_runtime  # type: ignore[attr-defined]

    def dump_and_optimize(self: Any, *args: Any, **kwargs: Any) -> None:
        write(self, folder, "original")
        optimize(self, *args, **kwargs)

    return dump_and_optimize


def write(concrete: Any, folder: str | Path, stage: str) -> None:
    """Write torchair's graph in every kind that it has for it, under torchair's names."""
    captured = not hasattr(concrete, "_input_info_list")
    name = concrete.fx_graph_name if captured else concrete.graph.name
    for kind in ("py",) if captured else DUMP_KINDS:
        concrete.dump(str(Path(folder) / f"dynamo_{stage}_{name}.{kind}"))


class _Runner:
    """What torchair's compiled function calls in place of its graph."""

    def __init__(self, concrete: Any, functional: torch.fx.GraphModule, graphs: list[LoweredGraph], dump: Any) -> None:
        self.concrete = concrete
        self._functional = functional
        self._graphs = graphs
        self._dump = dump
        self._seen = False

    def __call__(self, *args: Any) -> Any:
        mode = next((value.fake_mode for value in args if isinstance(value, FakeTensor)), None)
        if mode is None:
            return self.concrete(*args)
        if not self._seen:
            self._seen = True
            self._graphs.append(self._graph(args))
            if self._dump is not None:
                write(self.concrete, self._dump, "optimized")
        with mode:
            return self._functional(*args)

    def _graph(self, args: Sequence[Any]) -> LoweredGraph:
        concrete = self.concrete
        module = concrete.fx_graph
        lines = {node.name: _line(node) for node in module.graph.nodes if node.stack_trace}
        if not hasattr(concrete, "_input_info_list"):
            return LoweredGraph(concrete.fx_graph_name, None, module, tuple(args), source_lines=lines)
        functions = [info.func for info in concrete._input_info_list]
        process = concrete._gen_input_process(concrete._fx_input_names, concrete._all_sym_input_idx, functions)
        with unset_fake_temporarily():  # sizes are numbers, which the graph computes with
            inputs = tuple(process(*args))
        concrete.update_graph_with_runtime(inputs, args)
        definition = ge_graph.parse(concrete.graph.SerializeToString())
        return LoweredGraph(concrete.graph.name, definition, module, tuple(args), inputs, lines)


_FRAME = re.compile(r'File "(?P<file>.*?)", line (?P<line>\d+), in (?P<function>.*)')
_LIBRARIES = tuple(f"{Path(torch.__file__).parents[1] / name}/" for name in ("torch", "torch_npu", "torchair"))


def _line(node: torch.fx.Node) -> str:
    """'model.py:12 in forward: x = a @ b', the innermost line of the program that a node comes from; a library's if there is no other."""
    text = (node.stack_trace or "").splitlines()
    frames = [(match, at) for at, match in enumerate(map(_FRAME.search, text)) if match]
    own = [frame for frame in frames if not frame[0]["file"].startswith(_LIBRARIES)] or frames
    if not own:
        return ""
    match, at = own[-1]
    code = text[at + 1].strip() if at + 1 < len(text) else ""
    return f"{match['file']}:{match['line']} in {match['function']}" + (f": {code}" if code else "")


def lower(model: Callable, calls: Sequence[Sequence[Any]], **how: Any) -> tuple[list[LoweredGraph], list[Any]]:
    """Compile a described copy of `model` for the NPU and call it with described copies of each of `calls`.

    Returns the graphs in the order of their first call, and the outputs of the calls: fake tensors. Nothing is allocated and nothing run,
    whether the tensors given have memory or not. `how`: as `called` takes it.
    """
    mode = fakes.fake_mode(model, calls)
    on_npu, arguments = fakes.on_device(mode, "npu", (model, list(map(tuple, calls))))
    return called(on_npu, arguments, mode, **how)


def called(
    on_npu: Callable,
    calls: Sequence[Sequence[Any]],
    fake_mode: FakeTensorMode,
    *,
    dynamic: bool | None = False,
    fullgraph: bool = True,
    config: Any = None,
    mode: str | None = None,
    dump: str | Path | None = None,
) -> tuple[list[LoweredGraph], list[Any]]:
    """The same for a module and arguments that are fake tensors of `fake_mode` on the NPU. Arguments as `moe_graph.testing.lower`'s;
    `dump`: a folder for torchair's dumps of every kind."""
    graphs: list[LoweredGraph] = []
    outputs = []
    with torch.no_grad(), recorded(graphs, dump), fake_mode:
        run = compiled(on_npu, dynamic=dynamic, fullgraph=fullgraph, config=config, mode=mode)
        for call in calls:
            outputs.append(run(*call))
    return graphs, outputs


def compiled(
    on_npu: Callable, *, dynamic: bool | None, fullgraph: bool = True, config: Any = None, mode: str | None = None
) -> Callable[..., Any]:
    """A module or function on the NPU, compiled by torchair with nothing left of earlier compilations. Arguments as `called`'s."""
    import torchair

    config = torchair.CompilerConfig() if config is None else config
    if mode is not None:
        config.mode = mode
    torch._dynamo.reset()
    backend = torchair.get_npu_backend(compiler_config=config)
    return torch.compile(on_npu, backend=backend, dynamic=dynamic, fullgraph=fullgraph)
