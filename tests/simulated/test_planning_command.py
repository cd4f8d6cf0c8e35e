"""`moe-graph plan`, and the plan of one rank of many."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest
import torch

import moe_graph
from moe_graph.planning import command, communication, report, routing
from moe_graph.planning.errors import PlanError

MODEL = """
import torch
import torch.distributed as dist
from torch import nn


class Layer(nn.Module):
    def __init__(self, size, ranks):
        super().__init__()
        if size % ranks:
            raise ValueError(f"{size} does not divide into {ranks} ranks")
        self.up, self.down = nn.Linear(size, size // ranks, bias=False), nn.Linear(size // ranks, size, bias=False)

    def forward(self, x):
        y = self.down(self.up(x))
        dist.all_reduce(y)
        return x + y


def build(size=256, tokens=8):
    dist.init_process_group("hccl")
    return nn.Sequential(*(Layer(size, dist.get_world_size()) for _ in range(2))), [torch.empty(tokens, size)]


def wrong():
    model, _ = build()
    return model, [torch.empty(8, 255)]


def lost():
    dist.init_process_group("hccl")
    group = dist.new_group([0, 1])  # this rank is in no such group

    def forward(x):
        dist.all_reduce(x, group=group)
        return x + 1

    return forward, [torch.empty(8, 4)]

def alone():
    return torch.relu, torch.empty(8, 4)
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


def run(*argv):
    return command.main([str(word) for word in argv])


def test_json_of_one_rank_of_many(model, capsys, tmp_path):
    assert run(f"{model}:build", "--world", 32, "--rank", 7, "--json", "--dump", tmp_path / "dump") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rank"], found["world"]) == (7, 32)
    assert found["memory"]["parameters"] == 2 * 2 * 256 * 8 * 4
    assert found["communication"] == [
        {
            "ranks": list(range(32)),
            "operator": "all_reduce",
            "calls": 2,
            "given": 2 * 8 * 256 * 4,
            "received": 2 * 8 * 256 * 4,
        }
    ]
    assert found["flops"] == 2 * 2 * (2 * 8 * 256 * 8)
    assert sum(node["flops"] for node in found["nodes"]) == found["flops"]
    assert all(str(model) in node["line"] for node in found["nodes"] if node["flops"] or node["sent"])
    assert {path.suffix for path in (tmp_path / "dump").iterdir()} == {".txt", ".pbtxt", ".py"}


def test_tables_comparison_and_memory(model, capsys, tmp_path):
    for ranks in (4, 32):
        (tmp_path / f"tp{ranks}.yaml").write_text(f"build: {model}:build\nworld: {ranks}\narguments: {{tokens: 16}}\n")
    assert run("--compare", tmp_path / "tp4.yaml", tmp_path / "tp32.yaml") == 0
    table = capsys.readouterr().out
    assert "tp4" in table and "tp32" in table and "256.00 KiB" in table and "32.00 KiB" in table

    assert run("--config", tmp_path / "tp4.yaml", "--memory", "1GiB") == 0
    shown = capsys.readouterr()
    assert "key/value caches" in shown.out and "estimate" in shown.out and "fits" in shown.err
    assert run("--config", tmp_path / "tp4.yaml", "--memory", "200KiB") == command.FITS_NOT
    assert "parameters (256.00 KiB)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, text",
    [
        (["build", "--world", 48], "256 does not divide into 48 ranks"),
        (["wrong", "--world", 4], "self.up(x)"),
        (["lost", "--world", 4, "--rank", 3], "model.py"),
        (["build", "--world", 4, "--rank", 4], "rank must be at least 0 and below the world's size 4"),
        (["nothing"], "no function 'nothing'"),
        (["alone"], "alone must return (module, (argument, ...)), got ['builtin_function_or_method', 'FakeTensor']"),
        (["build", "--rank", 3], "say of how many, with --world"),
        (["build", "--world", 4, "--tokens", "nowhere.json"], "nowhere.json: No such file"),
        (["build", "--world", 4, "--dump", "/dev/null/dumps"], "--dump /dev/null/dumps: Not a directory"),
    ],
)
def test_what_is_wrong_is_found_while_planning_with_the_line(model, capsys, argv, text):
    place = f"{model}:{argv[0]}"
    try:
        assert run(place, *argv[1:]) == 1
        said = capsys.readouterr().err
    except Exception:
        said = traceback.format_exc()
    assert text in said


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("world: four", "world must be a whole number, got 'four'"),
        ("rank: true", "rank must be a whole number, got True"),
        ("arguments: 3", "arguments must be names and values of BUILD's arguments, got 3"),
        ("arguments: {sizes: 3}", "build: got an unexpected keyword argument 'sizes'"),
        ("mode: fast", "mode must be max-autotune or reduce-overhead, got 'fast'"),
    ],
)
def test_a_configuration_that_is_wrong_says_so(model, tmp_path, capsys, text, wrong):
    path = tmp_path / "plan.yaml"
    path.write_text(f"build: {model}:build\n{text}\n")
    assert run("--config", path) == 1
    assert wrong in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["max-autotune", "reduce-overhead"])
def test_a_dtype_that_the_product_lacks_is_found_with_the_line(mode):
    def swiglu(x):
        return torch.ops.npu.npu_swiglu(x + 1)

    def block_quant(x):
        return torch.ops.npu.npu_dynamic_mx_quant(x)

    def routed(x, counts):
        return torch.ops.npu.npu_moe_re_routing(x, counts)

    x = torch.empty(4, 64, device="meta")
    with pytest.raises(
        PlanError, match=r"test_planning_command.py:\d+ in swiglu.*npu_swiglu is not served.*torch.float64"
    ):
        moe_graph.plan(swiglu, x.double(), mode=mode)
    with pytest.raises(PlanError, match=r"in block_quant.*only Ascend 950 has it, the product is A2"):
        moe_graph.plan(block_quant, x.half(), mode=mode)
    call = routed, x.to(torch.float8_e4m3fn), torch.empty(2, 4, dtype=torch.int32, device="meta")
    if mode == "max-autotune":  # composed there
        assert moe_graph.plan(*call, mode=mode).node_types["MoeReRouting"] == 1
    else:
        with pytest.raises(PlanError, match=r"in routed.*the kernel of A2 serves no tokens of torch.float8_e4m3fn"):
            moe_graph.plan(*call, mode=mode)


def test_a_plan_in_a_program():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(64, 32, bias=False, device="meta")
            self.register_buffer("cache", torch.empty(100, 32, device="meta"))

        def forward(self, x):
            y = self.linear(x)
            self.cache[:8] = y
            return y.relu()

    for mode in ("max-autotune", "reduce-overhead"):
        plan = moe_graph.plan(Model(), torch.empty(8, 64, device="meta"), mode=mode)
        assert (plan.memory.parameters, plan.memory.caches, plan.memory.inputs) == (
            64 * 32 * 4,
            100 * 32 * 4,
            8 * 64 * 4,
        )
        assert plan.flops == 2 * 8 * 64 * 32 and plan.mode == mode
        assert report.as_json(plan)["memory"]["total"] == plan.memory.total
        assert plan.estimate > 0


def test_two_graphs_are_refused():
    with pytest.raises(Exception, match="graph_break"):
        moe_graph.plan(lambda x: (torch._dynamo.graph_break(), x)[1], torch.empty(4, device="meta"))


class TestRouting:
    def test_uniform_is_even_and_skewed_is_not(self):
        even = routing.distribution("uniform", 8, 32, 100, 4)
        assert even.shape == (8, 32) and (even.sum(1) == 400).all() and even.max() - even.min() <= 1
        assert routing.load(even).imbalance < 1.01
        skewed = routing.distribution("skewed", 8, 32, 100, 4)
        assert (skewed.sum(1) == 400).all() and (skewed <= 100).all() and (skewed[0, :-1] >= skewed[0, 1:]).all()
        load = routing.load(skewed)
        assert load.worst == 0 and load.busiest_expert == 0 and load.imbalance > 2
        assert load.received == tuple(8 * skewed[0].reshape(8, 4).sum(1))

    def test_from_a_file(self, tmp_path):
        path = tmp_path / "tokens.json"
        path.write_text("[[4, 0, 0, 2], [0, 0, 0, 6]]")
        counts = routing.distribution(str(path), 2, 4, [3, 3], 2)
        load = routing.load(counts)
        assert load.received == (4, 8) and load.worst == 1 and load.busiest_expert == 3
        assert load.sent_elsewhere == (2, 0)
        path.write_text("1,1,2,0")
        assert routing.distribution(str(path), 2, 4, 4, 2).tolist() == [[2, 2, 4, 0]] * 2

    @pytest.mark.parametrize(
        "text, wrong",
        [("[[1, 2]]", "must hold"), ("[[4, 0, 0, 1], [0, 0, 0, 6]]", "add up to 2"), ("a,b", "no numbers")],
    )
    def test_a_wrong_file_says_so(self, tmp_path, text, wrong):
        path = tmp_path / "tokens"
        path.write_text(text)
        with pytest.raises(PlanError, match=wrong):
            routing.distribution(str(path), 2, 4, 3, 2)

    def test_a_missing_file_and_experts_that_do_not_divide(self):
        with pytest.raises(PlanError, match="uniform"):
            routing.distribution("nowhere.json", 2, 4, 3, 2)
        with pytest.raises(PlanError, match="6 experts do not divide into 4 ranks"):
            routing.load(routing.distribution("uniform", 4, 6, 3, 2))


def test_messages_by_group():
    sent = [communication.Message("all_reduce", (0, 1), 8, 8), communication.Message("all_reduce", (0, 1), 4, 4)]
    sent.append(communication.Message("npu_moe_distribute_dispatch", (0, 1), 4, None))
    found = communication.by_group(sent)[0, 1]
    assert found == {"all_reduce": (2, 12, 12), "npu_moe_distribute_dispatch": (1, 4, None)}


@pytest.mark.slow
def test_the_decoder_of_the_examples(capsys):
    decoder = Path(__file__).parents[2] / "examples" / "decoder.py"
    settings = {"build": f"{decoder}:decode", "world": 128, "rank": 5, "arguments": {"layers": 4, "requests": 16}}
    plan = command.planned(settings)
    assert plan.node_types["MoeDistributeDispatchV2"] == 1 and plan.node_types["MlaPrologV3"] == 4
    assert plan.memory.caches == 4 * 16 * 4096 * (512 + 64) * 2
    assert plan.loads["uniform"].received == (16 * 8,) * 128 and plan.loads["skewed"].worst == 0
    given = {message.operator: message.given for message in plan.messages}
    assert given == dict.fromkeys(
        ("npu_moe_distribute_dispatch_v2", "npu_moe_distribute_combine_v2"), 16 * 8 * 7168 * 2
    )
    report.show(plan)
    assert "rank 5 of 128" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["max-autotune", "reduce-overhead"])
def test_the_page_has_costs_a_curve_and_collectives(model, tmp_path, mode):
    page = tmp_path / "plan.html"
    assert run(f"{model}:build", "--world", 4, "--mode", mode, "--html", page) == 0
    text = page.read_text(encoding="utf-8")
    data = json.loads(text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    costs, nodes = data["costs"], data["nodes"]
    assert len(costs["sends"]) == 2 and all("educe" in nodes[at]["type"] for at in costs["sends"])
    deepest = max(costs["weight"], key=costs["weight"].get)
    assert costs["weight"][deepest] == 1
    assert max(live for _, live in costs["curve"]) > 4 * 256 * 64 * 4
    assert len(costs["curve"]) >= 8 and "rank 0 of 4" in costs["title"]
    rows = dict(costs["rows"][str(costs["sends"][0])])
    assert rows["all_reduce"] == "ranks 0 to 3: 8.00 KiB given, 8.00 KiB received"
