"""`python -m moe_graph verify`: agreement is found where it is, differences and errors where they are, and the report says all."""

import json
import types

import pytest
import torch
from rich.console import Console

import moe_graph
from moe_graph import operators as declared
from moe_graph.foundation import compat, contract
from moe_graph.simulator import faults
from moe_graph.verification import command, grid, operators, report, run
from moe_graph.verification.calls import NOT_CALLED, Call, calls
from moe_graph.verification.run import Implementation, Status
from versions import need_torch

SHAPES = [grid.Shape(10, 8, 2, 3), grid.Shape(0, 8, 2, 3)]
FLOAT = grid.Mode("bfloat16", "A")


def by_implementation(outcomes):
    found = {}
    for outcome in outcomes:
        found.setdefault(outcome.implementation, []).append(outcome)
    return found


def test_all_agree_and_are_timed():
    seen = []
    outcomes = run.run_mode(FLOAT, SHAPES, seen.append)
    assert outcomes == seen and len(outcomes) == len(SHAPES) * len(Implementation)
    assert {outcome.status for outcome in outcomes} == {Status.AGREES}, [outcome.reason for outcome in outcomes]
    assert all(outcome.seconds > 0 and not outcome.failed for outcome in outcomes)


def test_what_the_document_excludes_is_not_given_to_the_kernel(product):
    scatter = grid.Mode("float32", idx_type=contract.SCATTER)
    found = by_implementation(run.run_mode(scatter, SHAPES[:1], lambda outcome: None))
    assert found[Implementation.KERNEL][0].status is Status.NOT_SERVED
    assert found[Implementation.GRAPH][0].status is Status.AGREES, found[Implementation.GRAPH][0].reason
    float8 = grid.Mode("float8_e4m3fn", "A,K/64,2", idx_type=contract.SCATTER)
    assert not grid.served(float8, SHAPES[0])
    product("950")
    assert grid.served(float8, SHAPES[0]) and not grid.served(float8, grid.Shape(4, 16400, 2, 2))


def test_a_wrong_result_is_a_difference(monkeypatch):
    def off_by_one(tokens, counts, **arguments):
        first, second, index, num = contract.operator()(tokens, counts, **arguments)
        return first, second, index + 1, num

    monkeypatch.setattr(run, "contract", types.SimpleNamespace(operator=lambda: off_by_one))
    found = by_implementation(run.run_mode(FLOAT, SHAPES[:1], lambda outcome: None))
    for which in (Implementation.KERNEL, Implementation.GRAPH):
        (outcome,) = found[which]
        assert outcome.status is Status.DIFFERS and outcome.failed
        assert outcome.reason.startswith("permute_token_idx[0]: kernel 1, fallback 0 (10 elements")
    assert found[Implementation.FALLBACK][0].status is Status.AGREES


def test_an_error_is_reported_and_the_walk_goes_on():
    need_torch(2, 9)
    with faults.failing_kernel("npu::npu_moe_re_routing"):
        found = by_implementation(run.run_mode(FLOAT, SHAPES[:1], lambda outcome: None))
    (kernel,) = found[Implementation.KERNEL]
    assert kernel.status is Status.RAISED and "npu_moe_re_routing" in kernel.reason and kernel.seconds is None
    assert found[Implementation.GRAPH][0].status is Status.AGREES


@pytest.mark.parametrize("quick", [True, False])
def test_the_grid_has_every_mode_and_limit(quick):
    modes, shapes = grid.modes(quick), grid.shapes(quick, simulated=True)
    assert len(set(modes)) == len(modes) and len(set(shapes)) == len(shapes)
    assert {mode.idx_type for mode in modes} == {mode.expert_token_num_type for mode in modes} == {0, 1}
    if not quick:
        stored = contract.TOKENS_DTYPES if compat.has_argument(contract.operator(), "tokens_dtype") else ()
        assert {None, *stored} == {mode.tokens_dtype for mode in modes}
        assert any(shape.tokens == 0 for shape in shapes) and any(shape.hidden >= 16384 for shape in shapes)
        assert grid.Shape(16384, 7168, 16, 16) in grid.shapes(False, simulated=False)
    for mode in modes:  # every call is a valid one
        tokens, counts, arguments = grid.inputs(mode, shapes[0])
        assert int(counts.sum()) == len(tokens)
        moe_graph.moe_re_routing(tokens, counts, **arguments)
        assert str(mode)


@pytest.fixture
def small_grid(monkeypatch):
    monkeypatch.setattr(grid, "modes", lambda quick: [FLOAT])
    monkeypatch.setattr(grid, "shapes", lambda quick, simulated: SHAPES[:1])
    monkeypatch.setattr(operators, "walk", lambda pattern: [])


def test_the_command_shows_a_table_and_writes_the_report(small_grid, tmp_path, capsys):
    path = tmp_path / "report.json"
    assert command.main(["--quick", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "simulated Ascend910B" in shown and "bfloat16, scales [A]" in shown and "3 agrees" in shown
    assert "times mean nothing" in shown and "kernel : fallback" not in shown
    report = json.loads(path.read_text())
    assert report["device"] == {"simulated": True, "name": "Ascend910B1", "count": 1, "product": "A2"}
    assert report["versions"]["torch"] == torch.__version__ and report["versions"]["cann"] is None
    assert report["counts"] == {"agrees": 3, "differs": 0, "raised": 0, "not served": 0}
    assert [call["implementation"] for call in report["calls"]] == ["kernel", "graph", "fallback"]
    assert str(tmp_path) not in path.read_text()


def test_the_exit_code_is_one_if_a_call_failed(small_grid, capsys):
    need_torch(2, 9)
    with faults.failing_kernel("npu::npu_moe_re_routing"):
        assert command.main(["--json", "-"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["counts"]["raised"] == 1  # JSON alone on stdout, the table on stderr
    assert "raised kernel, bfloat16, scales [A], A 10" in shown.err


def test_every_declared_operator_has_a_call_or_a_reason():
    names = {operator.name for operator in declared.every().values()}
    known = calls()
    assert set(known) | set(NOT_CALLED) == names
    assert not set(known) & set(NOT_CALLED)
    assert all(known.values()) and all(NOT_CALLED.values())


def failures(found):
    return [f"{finding.operator}, call {finding.call}: {finding.reason}" for finding in found if finding.failed]


def test_the_other_operators_agree():
    need_torch(2, 13)
    found = operators.walk()
    assert {finding.operator for finding in found} == set(declared.every())
    assert not failures(found)
    own = sum(call.product in ("", "A2") for made in calls().values() for call in made)
    assert sum(finding.status is Status.AGREES for finding in found) == own > 190


def test_the_operators_of_ascend_950_agree(product, monkeypatch):
    need_torch(2, 13)
    product("950")
    own = {name: [call for call in made if call.product == "950"] for name, made in calls().items()}
    monkeypatch.setattr(operators, "calls", lambda: {name: made for name, made in own.items() if made})
    found = operators.walk()
    assert not failures(found)
    assert sum(finding.status is Status.AGREES for finding in found) == sum(map(len, own.values())) > 15


def test_what_a_kernel_writes_to_its_arguments_is_compared(monkeypatch):
    need_torch(2, 13)
    monkeypatch.setattr(operators, "calls", lambda: {"npu_silu_": [Call((torch.randn(4, 8),))]})
    torch.ops.npu.npu_silu_(
        torch.ones(1).npu()
    )  # a device's kernel is looked up at its first call: before another is declared
    apart = declared.Operator("npu_silu_", torch.nn.functional.silu)
    monkeypatch.setattr(declared, "every", lambda: {"npu::npu_silu_": apart})
    (finding,) = operators.walk()
    assert finding.status is Status.DIFFERS and finding.reason.startswith("tensor 1: ")


def test_calls_of_another_product_are_not_made(monkeypatch, capsys):
    need_torch(2, 13)
    given = [Call((torch.randn(4, 8),)), Call((torch.randn(4, 8),), product="950")]
    monkeypatch.setattr(operators, "calls", lambda: {"npu_silu": given})
    first, second = operators.walk("npu_silu")
    assert (first.status, second.status) == (Status.AGREES, Status.NOT_SERVED)
    report.show_operators([first, second], Console(highlight=False))
    shown = capsys.readouterr().out
    assert "1 of 1 calls agree with the reference" in shown and "1 not called: only 950 has it" in shown


def test_a_kernel_that_contradicts_the_reference_is_named(monkeypatch, capsys):
    need_torch(2, 13)
    x, gamma = torch.randn(4, 8), torch.ones(8)
    given = {"npu_rms_norm": [Call((x, gamma)), Call((x, gamma[:3]))], "npu_silu": [Call((x.half(),))]}
    monkeypatch.setattr(operators, "calls", lambda: given)
    rms_norm = declared.every()["npu::npu_rms_norm"]
    rms_norm.overload(
        x.npu(), gamma.npu()
    )  # a device's kernel is looked up at its first call: before another is declared

    def off(x, gamma, epsilon=1e-6):
        y, rstd = rms_norm.reference(x, gamma if len(gamma) == x.shape[-1] else torch.ones(x.shape[-1]), epsilon)
        return y + 0.1, rstd

    wrong = {**declared.every(), "npu::npu_rms_norm": declared.Operator("npu_rms_norm", off)}
    monkeypatch.setattr(declared, "every", lambda: wrong)
    found = operators.walk("npu_*s*")
    by_status = {finding.operator: finding.status for finding in found if finding.status is not Status.NOT_SERVED}
    assert by_status == {"npu::npu_rms_norm": Status.RAISED, "npu::npu_silu": Status.AGREES}
    first = next(finding for finding in found if finding.operator == "npu::npu_rms_norm")
    assert first.status is Status.DIFFERS and first.reason.startswith(
        "tensor 0: 32 of 32 elements, the first at [0, 0]: kernel"
    )
    monkeypatch.setattr(grid, "modes", lambda quick: [])
    assert command.main(["--quick", "--json", "-"]) == 0  # no other operators then
    assert json.loads(capsys.readouterr().out)["operators"] == []
