"""Kernels of the engine against torchair's definitions: the node that torchair writes must be one that the kernel reads.

torchair's function of a GE type is called with everything it takes: names, order and defaults are those of the node that it makes.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
import torchair
from torchair._ge_concrete_graph import ge_apis
from torchair.ge import _ge_graph

from moe_graph.engine import attributes, kernels, registry

assert kernels  # registers them

# Attributes that torchair's function does not write, and the operators' definitions in ops-math, ops-nn, ops-transformer (*_proto.h) have.
NEWER = {
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceLogSumExp"), {"noop_with_empty_axes"}),
    "Range": {"is_closed"},
    "Round": {"decimals"},
    "Sort": {"y2_dtype"},
    "ArgMaxWithValue": {"indice_dtype"},
    "ArgMinWithValue": {"indice_dtype"},
    "TopKV2": {"indices_dtype"},
    "MatMulV2": {"opImplMode"},
    "BatchMatMulV2": {"enable_hf32"},
    "QuantUpdateScatter": {"reciprocal_scale"},
    "DequantRopeQuantKvcache": {"cache_mode"},
}
# Inputs whose kind is another one than the quoted definition says.
LENIENT = {
    ("MoeFinalizeRouting", "bias"): "optional in the operator's document",
    ("MoeFinalizeRouting", "scales"): "optional in the operator's document",
    ("MoeFinalizeRouting", "expanded_row_idx"): "the front end and the kernel share the signature",
    ("MoeFinalizeRouting", "expanded_expert_idx"): "optional in the operator's document",
    ("RotaryPositionEmbeddingGrad", "x"): "a device gives dx alone without it; torchair's converter feeds it",
    ("RecurrentGatedDeltaRule", "beta"): "torchair's converter leaves it unfed where the program does",
    (
        "GroupedMatmulSwigluQuantV2",
        "smooth_scale",
    ): "an optional input of torchair's function, and one tensor in the node",
    (
        "MaskedSoftmaxWithRelPosBias",
        "relative_pos_bias",
    ): "behind an optional input; the kernel refuses a node that leaves it unfed",
    ("ForeachRoundOffNumber", "roundMode"): "an input in the node that torchair writes",
    ("ForeachLerpList", "weight"): "a list in ops-nn's definition and in the node that torchair writes",
}
# torchair's functions that write another type than their name says.
FUNCTIONS = {"ForeachAcos": "ForeachACos", "ForeachAsin": "ForeachASin", "ForeachAtan": "ForeachATan"}
# Types that torchair's passes make, or users of its custom operators: it has no function for them, and nothing to compare with.
COMPARED = sorted(ge_type for ge_type in registry.known_types() if hasattr(ge_apis, ge_type) or ge_type in FUNCTIONS)
TYPES = [ge_type for ge_type in COMPARED if ge_type not in FUNCTIONS.values()]
# What torchair's function needs besides: it fails at its own default.
GIVEN = {
    "GroupedMatmul": {"split_item": 3},
    "ScatterPaKvCache": {"strides": [1, 1], "offsets": [0, 0]},
    "QuantMax": {"group_list": None},  # with one it writes GroupedQuantMax
    "GroupedDynamicBlockQuant": {"dst_type": 35},  # its default, 291, is torch_npu's number of the type, not GE's
}
# Attributes that torchair's function takes by one name and writes by another.
WRITTEN_AS = {"DynamicMxQuant": {"block_size": "blocksize"}}
_SAMPLES = {"bool": False, "int": 1, "float": 1.0, "str": "none"}


def _sample(annotation: object, data: object) -> object:
    """An argument of this type."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if "Tensor" in text:
        return [data, data] if "List" in text else data
    element = next(value for name, value in _SAMPLES.items() if name in text)
    return [[element]] if text.count("List[") == 2 else [element] if "List" in text else element


def written(ge_type: str) -> tuple[object, set[str]]:
    """The node that torchair's function makes with each input fed and each attribute at its default; what it has no default for."""
    function = getattr(ge_apis, FUNCTIONS.get(ge_type, ge_type))
    parameters = inspect.signature(function).parameters.values()
    with _ge_graph.GeGraph() as graph:
        data = ge_apis.Data(index=0, dtype=0, shape=[2], placement="NPU")
        given = {
            parameter.name: _sample(parameter.annotation, data)
            for parameter in parameters
            if parameter.name not in ("dependencies", "node_name")
            and ("Tensor" in str(parameter.annotation) or parameter.default is inspect.Parameter.empty)
        } | GIVEN.get(ge_type, {})
        function(**given)
        return next(op for op in graph.op if op.type == ge_type), set(given)


def fed_names(op: object) -> list[str]:
    """Names of the inputs in order, x0, x1 of a dynamic one as x."""
    names = [desc.name for desc in op.input_desc]
    dynamic = {name[:-1] for name in names if name.endswith("0") and name[:-1] + "1" in names}
    return list(dict.fromkeys(name[:-1] if name[:-1] in dynamic and name[-1] in "01" else name for name in names))


def plain(value: object) -> object:
    return [] if value is None else list(value) if isinstance(value, (tuple, list)) else value


def differences(ge_type: str) -> list[str]:
    """What the kernel's signature and torchair's node, or the definition that its function quotes, do not agree on."""
    op, given = written(ge_type)
    kernel = registry.get(ge_type)
    document = getattr(ge_apis, FUNCTIONS.get(ge_type, ge_type)).__doc__ or ""
    declared = {name: kind for kind, name in re.findall(r"\.(\w*INPUT|\w*ATTR)\(\s*(\w+)", document)}
    found = []
    names = [wanted.name for wanted in kernel.inputs]
    # An optional input that a kernel does not know is an error by name when it is fed.
    theirs = [name for name in fed_names(op) if name in names or declared.get(name) != "OPTIONAL_INPUT"]
    if names != theirs:
        found.append(f"inputs are {fed_names(op)}, the kernel has {names}")
    for wanted in kernel.inputs:
        kind = "DYNAMIC_INPUT" if wanted.dynamic else "OPTIONAL_INPUT" if wanted.optional else "INPUT"
        if declared.get(wanted.name, kind) != kind and (ge_type, wanted.name) not in LENIENT:
            found.append(f"input {wanted.name} is {declared[wanted.name]}, the kernel has {kind}")
    ours = {attribute.name: attribute for attribute in kernel.attributes}
    defaults = {name: attributes.decode(op.attr[name]) for name in op.attr if not name.startswith("_")}
    # What torchair's function takes and writes only when it is another value than the default.
    other_names = WRITTEN_AS.get(ge_type, {})
    taken = {
        other_names.get(parameter.name, parameter.name)
        for parameter in inspect.signature(getattr(ge_apis, FUNCTIONS.get(ge_type, ge_type))).parameters.values()
        if parameter.name in declared and declared[parameter.name].endswith("ATTR")
    }
    if unknown := set(ours) - set(defaults) - set(declared) - taken - NEWER.get(ge_type, set()):
        found.append(f"the definition has no attributes {sorted(unknown)}")
    if missing := (set(defaults) | taken) - set(ours) - set(names):
        found.append(f"the kernel has no attributes {sorted(missing)}")
    for name in set(defaults) & set(ours):
        required = declared.get(name, "REQUIRED_ATTR" if name in given else "ATTR") == "REQUIRED_ATTR"
        if ours[name].required != required:
            found.append(f"attribute {name} is {'' if required else 'not '}required")
        elif not required and name not in given and plain(defaults[name]) != pytest.approx(plain(ours[name].default)):
            found.append(f"attribute {name} is {defaults[name]!r} by default, the kernel has {ours[name].default!r}")
    return found


def test_kernels_read_the_nodes_that_torchair_writes():
    differ = {ge_type: found for ge_type in TYPES if (found := differences(ge_type))}
    assert not differ, "\n".join(f"{ge_type}: {line}" for ge_type, lines in differ.items() for line in lines)
    assert len(TYPES) > 300


def test_every_type_that_an_aten_converter_names_has_a_kernel():
    named = {}
    for file in sorted((Path(ge_apis.__file__).parent / "ge_converter" / "aten").glob("*.py")):
        for name in re.findall(r"(?<![.:\w])ge\.([A-Z]\w+)\(", file.read_text()):
            named.setdefault(name, file.stem)
    assert len(named) > 200
    structure = {"Const", "Data", "NetOutput"}  # the engine's own, not kernels
    assert not {name: file for name, file in named.items() if name not in structure and registry.get(name) is None}


def test_erfinv_compiles():
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    x = torch.tensor([-0.5, 0.0, 0.5, 1.0])
    assert torch.equal(torch.compile(torch.erfinv, backend=backend)(x.npu()).cpu(), torch.erfinv(x))
