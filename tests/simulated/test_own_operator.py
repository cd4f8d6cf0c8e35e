"""Operators of one's own: the example package, the template, plugins, and the checks of converters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import converter_mutations as mutations
import own_operator
import pytest
import torch
import torch_npu  # noqa: F401

from moe_graph import plugins, testing
from moe_graph.simulator.graph_mode.torchair_core import _check_cann_compat
from moe_graph.template import schema, write


def run(arguments: list[str], package: str, folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    environment = own_operator.environment(package, folder, site)
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder, env=environment)


def test_the_example_passes_its_own_tests(tmp_path):
    done = run(["pytest", "-q", "-p", "no:cacheprovider"], "own_operator", own_operator.EXAMPLE, tmp_path)
    assert done.returncode == 0 and "5 passed" in done.stdout, done.stdout[-3000:]


@pytest.mark.slow
def test_the_example_is_checked_by_the_command(tmp_path):
    done = run(["moe_graph", "check", "tests/test_scale_rows.py"], "own_operator", own_operator.EXAMPLE, tmp_path)
    assert done.returncode == 0 and "own_operator.scale_rows.default: passed" in done.stdout, done.stdout + done.stderr


def dumped(ge_type):
    """A text dump of one node with x [4, 8] and scale [4]."""
    data = "".join(
        f"""op {{ name: "{name}" type: "Data" attr {{ key: "index" value {{ i: {index} }} }}
        output_desc {{ name: "y" dtype: DT_FLOAT shape {{ {shape} }} }} }}\n"""
        for index, (name, shape) in enumerate({"x": "dim: 4 dim: 8", "scale": "dim: 4"}.items())
    )
    return (
        data
        + f"""op {{ name: "own" type: "{ge_type}" input: "x:0" input: "scale:0"
        input_desc {{ name: "x" }} input_desc {{ name: "scale" }} output_desc {{ name: "y" dtype: DT_FLOAT shape {{ dim: 4 dim: 8 }} }} }}
        op {{ name: "out" type: "NetOutput" input: "own:0" input_desc {{ name: "input0" }} }}"""
    )


def test_a_dump_is_checked_in_a_shell_with_the_types_of_installed_plugins(tmp_path):
    """Where torch_npu lies without CANN, `import torch` alone fails: nothing has started the device here."""
    for ge_type in ("ScaleRows", "MoeRoute"):
        (tmp_path / f"dynamo_original_graph_{ge_type}.txt").write_text(dumped(ge_type))
    (tmp_path / "dynamo_original_graph_captured.py").write_text(
        'class GraphModule(torch.nn.Module):\n    def forward(self, x: "f32[4]"):\n'
        '        add: "f32[4]" = torch.ops.aten.add.Tensor(x, 1);  x = None\n        return (add,)\n'
    )
    done = run(
        ["moe_graph", "inspect", "--check", str(tmp_path)], "own_operator", own_operator.EXAMPLE, tmp_path / "site"
    )
    assert done.returncode == 1 and not done.stderr, done.stderr
    assert "own (MoeRoute): no GE type of this name is known" in done.stdout
    assert "graph_MoeRoute, original: 4 nodes, 1 errors, 1 notes" in done.stdout  # not checked: its shapes
    assert "graph_ScaleRows, original: 4 nodes, 0 errors, 0 notes\n" in done.stdout, done.stdout
    assert "not checked: a captured graph is not given to GE" in done.stdout


def test_the_example_is_the_template_filled_in():
    """What the two have in common is written once: only the operator's meaning, its samples and the README differ."""
    text = "scale_rows(Tensor x, Tensor scale, Tensor? bias=None, float factor=1.0) -> Tensor"
    made = write.files("own_operator", schema.parse(text))
    for path in ("pyproject.toml", "own_operator/__init__.py"):
        assert made[path] == (own_operator.EXAMPLE / path).read_text(), path
    for path, code in made.items():
        assert (own_operator.EXAMPLE / path).exists()
        if path.endswith(".py"):
            compile(code, path, "exec")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "double_it(Tensor x) -> Tensor",
        "top2_of(Tensor x, Tensor? bias=None, *, int k=2, float[] w=[0.5, 0.25]) -> (Tensor values, Tensor indices)",
        "mix(Tensor x, Tensor? scale, Tensor[] others, int n, float f=1.0, *, bool flag=False, str s='a', int[] k=[1]) -> (Tensor, Tensor)",
    ],
)
def test_what_the_template_writes_passes_its_own_tests(text, tmp_path):
    folder = tmp_path / "made"
    write.write(folder, "made_here", schema.parse(text.replace("'", '"')))
    done = run(["pytest", "-q"], "made_here", folder, tmp_path / "site")
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Scale(Tensor x)", "schema must be like"),
        ("scale(Tensor x) -> int", "returns? tensors"),
        ("scale(Tensor x, Device d) -> Tensor", "argument 'Device d': a template covers Tensor"),
        ("scale(int n) -> Tensor", "needs a Tensor argument"),
        ("class(Tensor x) -> Tensor", "class is a word of Python"),
        ("scale(Tensor x, float lambda=1.0) -> Tensor", "lambda is a word of Python"),
        ("scale_(Tensor(a!) x) -> Tensor(a!)", r"return tensors .*got Tensor\(a!\)"),
    ],
)
def test_a_schema_that_the_template_does_not_cover_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        schema.parse(text)


def test_a_plugin_that_fails_is_named(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text("")
    (tmp_path / "broken" / "simulated.py").write_text("raise OSError('libbroken.so')")
    done = run(["moe_graph", "run", "-q", "-m", "this"], "broken", tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert (
        "the plugin broken = broken.simulated of broken (entry point moe_graph.plugins) failed: OSError: libbroken.so"
        in done.stderr
    )


# ---- an operator of this file, right and wrong ----

LIBRARY = torch.library.Library("test_own", "DEF")
LIBRARY.define("halve(Tensor x, Tensor? bias=None, float factor=0.5) -> (Tensor, Tensor)")
LIBRARY.define("add_into_(Tensor(a!) x, Tensor y) -> Tensor(a!)")


def halve(x, bias=None, factor=0.5):
    y = x * factor if bias is None else x * factor + bias
    return y, y.argmax(-1)


torch.library.register_fake(
    "test_own::halve",
    lambda x, bias=None, factor=0.5: (torch.empty_like(x), x.new_empty(x.shape[:1], dtype=torch.int64)),
    lib=LIBRARY,
)
torch.library.register_fake("test_own::add_into_", lambda x, y: x, lib=LIBRARY)
plugins.npu_kernel("test_own::halve")(halve)
plugins.npu_kernel(torch.ops.test_own.add_into_.default)(lambda x, y: x.add_(y))
plugins.define(
    """
    REG_OP(TestHalve)
        .INPUT(x, TensorType({DT_FLOAT}))
        .OPTIONAL_INPUT(bias, TensorType({DT_FLOAT}))
        .OUTPUT(y, TensorType({DT_FLOAT}))
        .OUTPUT(place, TensorType({DT_INT64}))
        .ATTR(factor, Float, 0.5)
        .OP_END_FACTORY_REG(TestHalve)
    """
)


@plugins.ge_kernel("TestHalve")
def halve_node(x: torch.Tensor, bias: torch.Tensor | None = None, *, factor: float = 0.5) -> tuple:
    return halve(x, bias, factor)


SAMPLES = [testing.Sample((torch.randn(rows, 8), torch.randn(8), 0.25)) for rows in (4, 7)]


def converter(**changes):
    """A converter of TestHalve, with something changed."""
    import torchair
    from torchair.ge import attr, custom_op

    def convert(x, bias=None, factor=0.5, meta_outputs=None):
        given = {"inputs": {"x": x, "bias": bias}, "attrs": {"factor": attr.Float(factor)}, **changes}
        return custom_op("TestHalve", outputs=["y", "place"], **given)

    torchair.register_fx_node_ge_converter(torch.ops.test_own.halve.default)(convert)


def check(**options):
    return testing.check_converter(torch.ops.test_own.halve, SAMPLES, **options)


def test_a_right_converter_passes_every_check():
    converter()
    report = check()
    assert report.ok, report
    assert {row.check for row in report.rows} == {
        "operator", "fake", "static", "dynamic", "nodes", "host", "arguments", "captured",
    }  # fmt: skip
    assert str(report).splitlines()[0] == "test_own.halve.default: passed"


def test_what_is_wrong_is_named():
    converter(attrs={})
    faults = check(opcheck=False, captured=False).faults
    assert {fault.check for fault in faults} == {"static", "dynamic"}
    assert "output 0 is not what the operator returns in eager mode" in faults[0].fault
    report = testing.check_converter(torch.ops.test_own.halve, SAMPLES[:1], opcheck=False, captured=False)
    assert "no two samples differ in the sizes of their tensors alone" in str(report)


def test_an_argument_that_is_left_out_is_named():
    converter(inputs=None)
    faults = check(opcheck=False, captured=False).faults
    assert any("input 'x' is missing" in fault.fault for fault in faults), faults
    report = testing.check_converter(
        torch.ops.test_own.halve, [testing.Sample((torch.randn(4, 8),))], opcheck=False, captured=False
    )
    assert "no sample gives bias, factor another value than the default: add one" in str(report)


def test_a_kernel_on_npu_tensors_writes_and_is_captured():
    x, y = torch.ones(3).npu(), torch.full((3,), 2.0).npu()
    assert torch.ops.test_own.add_into_(x, y).data_ptr() == x.data_ptr()
    assert x.cpu().tolist() == [3, 3, 3]
    graph, stream = torch.npu.NPUGraph(), torch.npu.Stream()
    with torch.npu.graph(graph, stream=stream):
        torch.ops.test_own.add_into_(x, y)
    graph.replay()
    torch.npu.synchronize()
    assert x.cpu().tolist() == [5, 5, 5]


def test_one_kernel_for_an_operator():
    with pytest.raises(ValueError, match="test_own::halve already has a kernel, halve"):
        plugins.npu_kernel("test_own::halve")(lambda x: x)
    with pytest.raises(ValueError, match='operator must be "namespace::name"'):
        plugins.npu_kernel("halve")


def test_declared_types_are_compatible():
    assert _check_cann_compat("TestHalve", ["bias"], ["factor"]) == ""
    assert "unsupported optional input [scale]" in _check_cann_compat("TestHalve", ["scale"], [])


def test_mutations_of_a_converter_are_found():
    false_alarms, missed, detected, total = mutations.walk([torch.ops.npu.npu_swiglu.default])
    assert not false_alarms and not missed
    assert detected == total >= 2


@pytest.mark.slow
def test_mutations_of_all_converters_are_found():
    false_alarms, missed, detected, total = mutations.walk(mutations.SAMPLES)
    assert not false_alarms
    assert detected >= 0.95 * total, missed
    assert len(mutations.SAMPLES) >= 22
