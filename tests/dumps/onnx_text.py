"""A Graph as the text GE would dump it in, `ge_onnx_*.pbtxt`: what `OnnxUtils` of GE's metadef encodes at its highest level.

GE writes attributes sorted by name, a zero or false not at all, `shape` with no `ints` for a scalar, -2 for an unknown rank, and only
those outputs of a node that are read.
"""

from __future__ import annotations

from moe_graph.dumps.reading_dtypes import TYPES

_NAMES = {t.word: t.name for t in TYPES}


def encode(graph):
    lines = ["ir_version: 6", 'producer_name: "GE"', "graph {", f'  name: "{graph.name}"']
    for node in graph.inputs:
        lines += [
            "  input {",
            f'    name: "{node.name}"',
            "    type { tensor_type { elem_type: FLOAT shape { } } }",
            "  }",
        ]
    for at, node in enumerate(graph.nodes):
        lines += _node(graph, node, at)
    return "\n".join([*lines, "}", ""])


def _node(graph, node, at):
    lines = ["  node {"]
    lines += [f'    input: "{"" if edge is None else f"{edge.node}:{edge.output}"}"' for edge in node.inputs]
    lines += ['    input: ""'] if node.type == "Data" else []
    read = {
        edge.output for reader in graph.nodes for edge in reader.inputs if edge is not None and edge.node == node.name
    }
    lines += [f'    output: "{node.name}:{output}"' for output in sorted(read)]
    lines += [f'    name: "{node.name}"', f'    op_type: "ge:{node.type}"']
    values = {"id": at, "stream_id": 0, "input_name": [], "dst_index": [3], "workspace": [], "is_input_const": [0, 1]}
    values.update({key: value for key, value in node.attributes.items() if node.type != "Const"})
    names = [name for name in node.input_names if name]
    if len(names) == len(node.input_names):
        values.update({"_input_name_key": names, "_input_name_value": list(range(len(names)))})
    tensors = [None if edge is None else tensor for edge, tensor in zip(node.inputs, node.input_tensors)]
    for side, described in (("input", tensors), ("output", node.outputs)):
        if node.type == "NetOutput":
            described = node.outputs if side == "input" else ()
        values[f"{side}_desc_nums"] = len(described)
        for i, tensor in enumerate(described):
            if tensor is not None:
                values[f"{side}_desc_dtype:{i}"] = _NAMES.get(tensor.dtype, "DT_UNDEFINED")
                values[f"{side}_desc_shape:{i}"] = [-2] if tensor.shape is None else list(tensor.shape)
                values[f"{side}_desc_origin_shape:{i}"] = []
                values[f"{side}_desc_layout:{i}"] = tensor.format or "ND"
                values[f"{side}_desc_device_type:{i}"] = tensor.device
    fx = node.fx.partition(": ")
    if fx[2] and not node.fx.startswith("a view"):
        values["output_desc_attr__fx_tensor_name:0"] = f"{fx[0]}-{fx[2]}.OUTPUT.0"
    if node.type == "Const":
        tensor = node.outputs[0]
        values.update({"value_desc_dtype": _NAMES[tensor.dtype], "value_desc_shape": list(tensor.shape)})
        values["value_data"] = str(node.attributes["value"])
    for name, value in sorted(values.items()):
        lines += ["    attribute {", f'      name: "{name}"', *_value(value), "    }"]
    return [*lines, "  }"]


def _value(value):
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, str):
        return [f'      s: "{value}"', "      type: STRING"]
    if isinstance(value, float):
        return ([f"      f: {value}"] if value else []) + ["      type: FLOAT"]
    if isinstance(value, int):
        return ([f"      i: {value}"] if value else []) + ["      type: INT"]
    field, kind = ("strings", "STRINGS") if value and isinstance(value[0], str) else ("ints", "INTS")
    quoted = (f'"{element}"' if isinstance(element, str) else element for element in value)
    return [*(f"      {field}: {element}" for element in quoted), f"      type: {kind}"]
