"""Captured graphs (torch.npu.graph): recorded launches replayed on the same memory, and what a capture refuses."""

from __future__ import annotations

import gc
import json
import threading

import pytest
import torch
import torch.distributed as dist

import moe_graph
from moe_graph.simulator import replays
from versions import need_torch


def captured(function, **options):
    """(graph, what `function` returned under the capture)"""
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, **options):
        result = function()
    return graph, result


def test_a_replay_reads_what_the_inputs_hold_then():
    x, w = torch.randn(4, 3).npu(), torch.randn(3, 5).npu()
    graph, y = captured(lambda: torch.relu(x @ w + 1).sum(-1))
    for value in (torch.ones(4, 3), torch.randn(4, 3)):
        x.copy_(value)
        graph.replay()
        assert torch.allclose(y.cpu(), torch.relu(value @ w.cpu() + 1).sum(-1), atol=1e-6)


def test_nothing_is_computed_at_the_capture():
    x, total = torch.ones(3).npu(), torch.zeros(3).npu()
    graph, _ = captured(lambda: total.add_(x))
    assert total.cpu().tolist() == [0, 0, 0]
    graph.replay()
    graph.replay()
    assert total.cpu().tolist() == [2, 2, 2]


def test_views_results_and_memory_that_is_used_again():
    x = torch.arange(12.0).npu()

    def program():
        view = x.view(3, 4)
        view.t()[1].mul_(10)
        for _ in range(3):
            view = view + 1  # the memory of the one before the last is free again
        out = torch.empty(4, 3, device="npu")
        torch.mul(view.t(), 2, out=out)
        values, indices = view.topk(2, dim=1)
        return out, values, indices, view.reshape(-1)[2:4]

    expected = torch.arange(12.0).view(3, 4)
    expected[:, 1] *= 10
    expected = expected + 3
    graph, (out, values, indices, part) = captured(program)
    graph.replay()
    assert torch.equal(out.cpu(), expected.t() * 2)
    assert torch.equal(values.cpu(), expected.topk(2, dim=1).values)
    assert torch.equal(indices.cpu(), expected.topk(2, dim=1).indices)
    assert torch.equal(part.cpu(), expected.reshape(-1)[2:4])


def test_numbers_of_the_host_are_baked_in():
    x, scale = torch.ones(2).npu(), torch.tensor(3.0)
    graph, y = captured(lambda: x * scale)
    scale.fill_(5)
    graph.replay()
    assert y.cpu().tolist() == [3, 3]


def test_re_routing_is_recorded_with_its_counts():
    tokens = torch.arange(8.0).half().view(4, 2).npu()
    counts = torch.tensor([[1, 1], [2, 0]], dtype=torch.int32).npu()
    graph, out = captured(lambda: torch.ops.npu.npu_moe_re_routing(tokens, counts))
    graph.replay()
    assert out[2].cpu().tolist() == [0, 2, 3, 1]
    counts.copy_(torch.tensor([[0, 1], [1, 2]], dtype=torch.int32))
    graph.replay()
    assert out[2].cpu().tolist() == [1, 0, 2, 3]
    assert torch.equal(out[0].cpu(), tokens.cpu()[[1, 0, 2, 3]]) and out[3].cpu().tolist() == [1, 3]


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (lambda x: x.sum().item(), 107027),
        (lambda x: x.cpu(), 107027),
        (lambda x: x.nonzero(), 107027),
        (lambda x: x[x > 0], 107027),
        (lambda x: torch.ones(2).npu(), 107027),
        (lambda x: x[torch.tensor([0, 1])], 107027),
        (lambda x: x.repeat_interleave(torch.ones(4, dtype=torch.int64, device="npu")), 107027),
        (lambda x: torch.equal(x, x), 107027),
        (lambda x: torch.npu.current_stream().synchronize(), 107027),
        (lambda x: torch.npu.current_stream().query(), 107027),
        (lambda x: torch.npu.synchronize(), 107030),
    ],
)
def test_what_a_capture_must_not_do_fails_and_the_next_one_works(refused, code):
    x = torch.ones(4).npu()
    with pytest.raises(RuntimeError, match=f"error code is {code}"):
        captured(lambda: refused(x))
    assert not torch.npu.is_current_stream_capturing()
    graph, y = captured(lambda: x + 1)
    graph.replay()
    assert y.cpu().tolist() == [2, 2, 2, 2]


def test_a_capture_does_not_wait_for_events_from_outside():
    event = torch.npu.Event()
    event.record()
    with pytest.raises(RuntimeError, match="error code is 107024"):
        captured(lambda: torch.npu.current_stream().wait_event(event))


def test_the_default_stream_and_a_replay_of_nothing_are_refused():
    with pytest.raises(RuntimeError, match="must be captured on a non-default stream"):
        torch.npu.NPUGraph().capture_begin()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        torch.npu.NPUGraph().replay()


def test_a_second_capture_is_refused():
    need_torch(2, 13)  # torch_npu 2.9 goes on in the state of a capture, and aborts the process at the graph's end
    stream, graph, other = torch.npu.Stream(), torch.npu.NPUGraph(), torch.npu.NPUGraph()
    with torch.npu.stream(stream):
        graph.capture_begin()
        with pytest.raises(RuntimeError, match="107027"):
            other.capture_begin()
        graph.capture_end()
        with pytest.raises(RuntimeError, match="already owns a captured graph"):
            graph.capture_begin()


def test_streams_fork_and_join():
    x, side = torch.ones(3).npu(), torch.npu.Stream()

    def program():
        main = torch.npu.current_stream()
        a = x + 1
        side.wait_stream(main)
        with torch.npu.stream(side):
            b = a * 2
        c = a + 5
        main.wait_stream(side)
        return b + c

    graph, y = captured(program)
    graph.replay()
    assert y.cpu().tolist() == [11, 11, 11]


def test_a_stream_that_does_not_come_back_is_an_error():
    need_torch(
        2, 9
    )  # where a capture's end fails, torch_npu 2.8's allocator stays in the capture, and refuses all later ones
    x, side = torch.ones(3).npu(), torch.npu.Stream()

    def program():
        side.wait_stream(torch.npu.current_stream())
        with torch.npu.stream(side):
            return x * 2

    before = torch.npu.current_stream()
    with pytest.raises(RuntimeError, match="107025"):
        captured(program)
    torch.npu.set_stream(
        before
    )  # torch.npu.graph leaves its own stream as the current one when the end of a capture fails
    assert captured(lambda: x + 1)[1].shape == (3,)


def test_random_numbers_move_on_with_each_replay():
    def program():
        return torch.rand(5, device="npu"), torch.nn.functional.dropout(torch.ones(20, device="npu"), 0.5)

    graph, drawn = captured(program)
    torch.npu.manual_seed(11)
    eager = [program() for _ in range(3)]
    after = torch.rand(2, device="npu").cpu()
    torch.npu.manual_seed(11)
    for expected in eager:
        graph.replay()
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(drawn, expected))
    assert torch.equal(torch.rand(2, device="npu").cpu(), after)


def test_a_replay_after_an_input_was_freed_is_an_error():
    x, freed = torch.ones(1000).npu(), [torch.ones(1000).npu()]
    graph, z = captured(lambda: (torch.empty(8, device="npu").fill_(1), x + freed[0])[1])
    graph.replay()
    assert z[0].item() == 2
    freed.clear()
    with pytest.raises(
        RuntimeError, match=r"aten.add.Tensor uses the 4000 bytes at .* float32 \[1000\] that was freed"
    ):
        graph.replay()


def test_a_replay_after_an_input_of_re_routing_was_freed_is_an_error():
    need_torch(2, 9)  # torch_npu 2.8 does not tell a graph's pool from others: freed memory may be the graph's own
    tokens, counts = torch.ones(4, 8).half().npu(), [torch.tensor([[1, 1], [2, 0]], dtype=torch.int32).npu()]
    graph, _ = captured(lambda: torch.ops.npu.npu_moe_re_routing(tokens, counts[0]))
    graph.replay()
    counts.clear()
    with pytest.raises(
        RuntimeError, match=r"npu_moe_re_routing.default uses the 16 bytes at .* int32 \[2, 2\] that was freed"
    ):
        graph.replay()


def test_after_a_capture_a_launch_of_re_routing_that_fails_is_an_error_still():
    tokens, counts = torch.randn(4, 8).half().npu(), torch.tensor([[1, 3]], dtype=torch.int32)
    captured(lambda: tokens + 1)
    with pytest.raises(RuntimeError):
        torch.ops.npu.npu_moe_re_routing(tokens, (counts * 2).npu())  # counts of more tokens than there are
        torch.npu.synchronize()
    assert torch.ops.npu.npu_moe_re_routing(tokens, counts.npu())[2].tolist() == [0, 1, 2, 3]


def test_a_replay_after_an_input_was_resized_is_an_error():
    x, y = torch.ones(1000).npu(), torch.zeros(1000).npu()
    graph, _ = captured(lambda: (x + 1, y + 1))
    y.resize_(10)  # stays where it is
    graph.replay()
    x.resize_(100_000)
    with pytest.raises(RuntimeError, match=r"aten.add.Tensor uses the 4000 bytes at .* that was moved by a resize"):
        graph.replay()


def test_an_error_of_a_replay_names_the_launch_and_its_line():
    x, index = torch.ones(3).npu(), torch.tensor([2]).npu()
    graph, _ = captured(lambda: (x + 1, x.index_select(0, index)))
    index.fill_(3)
    with pytest.raises(
        RuntimeError, match=rf"aten.index_select.default, launched at {__file__}:\d+ in <lambda>: IndexError"
    ):
        graph.replay()


def test_the_default_dtype_of_the_capture_holds():
    counts = torch.tensor([1, 2]).npu()
    graph, (half, ones) = captured(lambda: (counts / 2, torch.ones(2, device="npu")))
    torch.set_default_dtype(torch.float64)
    try:
        graph.replay()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert half.tolist() == [0.5, 1] and half.dtype == ones.dtype == torch.float32


def test_graphs_of_one_pool_hand_memory_to_each_other():
    pool = torch.npu.graph_pool_handle()
    x = torch.ones(64).npu()
    hidden = []
    first, _ = captured(lambda: hidden.append(x + 1), pool=pool)
    second, y = captured(lambda: hidden.pop() * 3, pool=pool)  # freed: in the pool it stays what the first graph writes
    assert first.pool() == second.pool() == pool
    for value in (1, 4):
        x.fill_(value)
        first.replay()
        second.replay()
        assert y[0].item() == (value + 1) * 3


def test_graphs_of_pools_of_their_own_hand_memory_to_each_other_until_it_is_taken():
    need_torch(2, 9)  # torch_npu 2.8 does not tell a graph's pool from others
    pool = torch.npu.graph_pool_handle()
    x = torch.ones(64).npu()
    hidden = []
    first, _ = captured(lambda: hidden.append(x + 1), pool=pool)
    second, y = captured(lambda: hidden.pop() * 3)
    for value in (1, 4):
        x.fill_(value)
        first.replay()
        second.replay()
        assert y[0].item() == (value + 1) * 3
    _, taken = captured(lambda: x + 2, pool=pool)  # at the same place
    with pytest.raises(RuntimeError, match=r"aten.mul.Tensor uses the 256 bytes at .* that was freed"):
        second.replay()
    assert len(taken) == 64


def test_copies_between_pinned_memory_and_the_device_are_recorded():
    source, back = torch.zeros(4).pin_memory(), torch.zeros(4).pin_memory()
    x = torch.zeros(4).npu()

    def program():
        x.copy_(source, non_blocking=True)
        x.mul_(2)
        back.copy_(x, non_blocking=True)

    graph, _ = captured(program)
    source.copy_(torch.arange(4.0))
    graph.replay()
    torch.npu.synchronize()
    assert back.tolist() == [0, 2, 4, 6]


def test_a_graph_is_described_as_a_trace(tmp_path):
    x = torch.ones(3).npu()
    graph, _ = captured(lambda: torch.relu(x + 1))
    graph.debug_dump(str(tmp_path / "graph.json"))
    names = [event["name"] for event in json.loads((tmp_path / "graph.json").read_text())]
    assert names == ["aten.add.Tensor", "aten.relu.default"]


def test_graphed_callables_have_gradients():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)).npu()
    plain = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    plain.load_state_dict({name: value.cpu() for name, value in module.state_dict().items()})
    graphed = torch.npu.make_graphed_callables(module, (torch.randn(3, 6, device="npu", requires_grad=True),))
    for _ in range(2):
        module.zero_grad(
            set_to_none=True
        )  # a kept gradient would be the graph's own memory, which the next replay writes
        plain.zero_grad(set_to_none=True)
        x = torch.randn(3, 6, requires_grad=True)
        on_device = x.detach().npu().requires_grad_()
        graphed(on_device).square().sum().backward()
        plain(x).square().sum().backward()
        assert torch.allclose(on_device.grad.cpu(), x.grad, atol=1e-5)
        for mine, other in zip(module.parameters(), plain.parameters()):
            assert torch.allclose(mine.grad.cpu(), other.grad, atol=1e-5)


def test_a_graph_keeps_no_results_of_its_communication():
    """Their memory is used again in the graph, and torchair takes none as kept when it captures another shape into the same pool."""
    dist.init_process_group("hccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.ones(1000).npu()
        before = torch.npu.memory_allocated()
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            y = x * 2
            dist.all_reduce(y)
            dist.all_gather([torch.empty_like(x)], y, async_op=True).wait()
            total = y.sum()
        del y
        assert torch.npu.memory_allocated() - before == 512  # the total's block
        x.fill_(3)
        graph.replay()
        assert total.item() == 6000
    finally:
        dist.destroy_process_group()


def test_messages_in_a_batch_are_waited_for_in_the_graph():
    dist.init_process_group("hccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x, received = torch.ones(3).npu(), torch.zeros(3).npu()
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            batch = [dist.P2POp(dist.isend, x * 2, 0), dist.P2POp(dist.irecv, received, 0)]
            (work,) = dist.batch_isend_irecv(batch)
            assert work.wait() and work.result()[1] is received
            after = received + 1
        seen = []
        with replays.observed(lambda number, launch, operator, results: seen.append(operator)):
            for value in (1, 5):
                x.fill_(value)
                graph.replay()
                assert after.tolist() == [2 * value + 1] * 3
        messages = ["hccl::send", "hccl::recv", "hccl::send (wait)", "hccl::recv (wait)"]
        assert seen == ["aten.mul.Tensor", *messages, "aten.add.Tensor"] * 2
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("times", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_captures_leave_nothing_behind(times):
    from moe_graph.simulator.runtime import captured as room

    x = torch.ones(256).npu()

    def one():
        graph, y = captured(lambda: torch.relu(x + 1).sum() * torch.rand(1, device="npu"))
        graph.replay()
        return y

    for _ in range(20):
        one()
    gc.collect()
    before, memory, objects = len(room._graphs), torch.npu.memory_allocated(), len(gc.get_objects())
    reserved = torch.npu.memory_reserved()
    for _ in range(times):
        one()
    gc.collect()
    assert len(room._graphs) == before
    assert torch.npu.memory_allocated() == memory and torch.npu.memory_reserved() <= reserved
    assert len(gc.get_objects()) < objects + 500


def test_graphs_of_an_ended_capture_that_failed_are_forgotten():
    need_torch(2, 9)  # as above
    from moe_graph.simulator.runtime import captured as room

    side, before = torch.npu.Stream(), torch.npu.current_stream()
    known = len(room._graphs)

    def program():
        side.wait_stream(torch.npu.current_stream())
        with torch.npu.stream(side):
            torch.ones(3, device="npu")

    with pytest.raises(RuntimeError, match="107025"):
        captured(program)
    torch.npu.set_stream(before)
    gc.collect()
    assert len(room._graphs) == known


def test_a_task_is_replaced_between_replays():
    x, y = torch.ones(3).npu(), torch.zeros(3).npu()
    graph, stream, update_stream = torch.npu.NPUGraph(), torch.npu.Stream(), torch.npu.Stream()
    with torch.npu.graph(graph, stream=stream):
        torch.npu.graph_task_group_begin(stream)
        torch.add(x, 1, out=y)
        group = torch.npu.graph_task_group_end(stream)
        y.mul_(10)
    graph.replay()
    assert y.cpu().tolist() == [20] * 3
    with torch.npu.stream(update_stream):
        torch.npu.graph_task_update_begin(update_stream, group)
        torch.add(x, 5, out=y)
        torch.npu.graph_task_update_end(update_stream)
    assert y.cpu().tolist() == [20] * 3
    graph.replay()
    assert y.cpu().tolist() == [60] * 3
    with torch.npu.stream(update_stream), pytest.raises(RuntimeError, match="0 of the 1 tasks"):
        torch.npu.graph_task_update_begin(update_stream, group)
        torch.npu.graph_task_update_end(update_stream)


def test_an_update_is_of_the_same_operator_and_its_memory_is_watched():
    y, stream, other = torch.zeros(3).npu(), torch.npu.Stream(), torch.npu.Stream()
    graph, inputs = torch.npu.NPUGraph(), [torch.ones(3).npu(), torch.full((3,), 2.0).npu()]
    with torch.npu.graph(graph, stream=stream):
        torch.npu.graph_task_group_begin(stream)
        torch.add(inputs[0], 1, out=y)
        group = torch.npu.graph_task_group_end(stream)

    def update(launch):
        with torch.npu.stream(other):
            torch.npu.graph_task_update_begin(other, group)
            try:
                launch()
            finally:
                torch.npu.graph_task_update_end(other)

    with pytest.raises(RuntimeError, match="the task to replace is another, aten.add.out|0 of the 1 tasks"):
        update(lambda: torch.mul(inputs[0], 5, out=y))
    update(lambda: torch.add(inputs[1], 5, out=y))
    del inputs[0]  # no launch reads it any more
    graph.replay()
    assert y.tolist() == [7, 7, 7]
    inputs.clear()
    with pytest.raises(RuntimeError, match="aten.add.out uses the 12 bytes at .* that was freed"):
        graph.replay()


def test_a_condition_runs_its_body_or_leaves_it_out():
    if not hasattr(torch.npu.NPUGraph, "begin_capture_to_if_node"):
        pytest.skip("this torch_npu has no conditional nodes")
    flag, x = torch.tensor([True]).npu(), torch.zeros(2).npu()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        x.add_(1)
        graph.begin_capture_to_if_node(flag)
        x.add_(10)
        graph.end_capture_to_conditional_node()
    seen = []
    for value in (True, False, True):
        flag.fill_(value)
        x.zero_()
        graph.replay()
        seen.append(x.cpu().tolist())
    assert seen == [[11, 11], [1, 1], [11, 11]]


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
def test_how_strict_a_capture_is(mode):
    x = torch.ones(2).npu()
    waited = []

    def elsewhere():
        try:
            torch.npu.set_device(0)
            torch.npu.synchronize()
            waited.append("")
        except RuntimeError as error:
            waited.append(str(error))

    def program():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return x + 1

    graph, y = captured(program, capture_error_mode=mode)
    graph.replay()
    assert y.cpu().tolist() == [2, 2]
    assert ("error code is 107030" in waited[0]) == (mode == "global")


def test_the_first_launch_that_is_not_finite_is_named():
    x = torch.tensor([1.0, 2.0]).npu()
    graph, _ = captured(lambda: torch.softmax((x + 1).log().mul_(2), 0))
    with moe_graph.trace(statistics=True) as seen:
        graph.replay()
        x.fill_(-3)
        graph.replay()
    assert [launch.type for launch in seen.nodes[:4]] == [
        "aten.add.Tensor",
        "aten.log.default",
        "aten.mul_.Tensor",
        "aten._softmax.default",
    ]
    first = seen.first_non_finite
    assert (first.type, first.run, first.name) == ("aten.log.default", 1, "launch 1")
    assert __file__ in first.source and first.outputs[0].statistics.nan == 2
    assert "aten.log.default" in str(first) and "float32 [2]: no finite element, 2 NaN" in str(first)
    before = len(seen.nodes)
    graph.replay()
    assert len(seen.nodes) == before == 8
    with moe_graph.trace() as unasked, pytest.raises(ValueError, match="statistics=True"):
        print(unasked.first_non_finite)


def test_a_whole_training_step_is_eager_bit_by_bit():
    def build():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.GELU(), torch.nn.Linear(16, 3)
        )
        net = net.npu()
        return net, torch.optim.Adam(net.parameters(), 1e-2, capturable=True)

    x, target = torch.randn(5, 8).npu(), torch.randint(3, (5,)).npu()

    def step(net, optimizer):
        loss = torch.nn.functional.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        return loss

    (net, optimizer), (eager, eager_optimizer) = build(), build()
    warm = torch.npu.Stream()
    warm.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(warm):
        step(net, optimizer)
    torch.npu.current_stream().wait_stream(warm)
    optimizer.zero_grad(set_to_none=True)
    graph, loss = captured(lambda: step(net, optimizer))
    for _ in range(3):
        graph.replay()
    for _ in range(4):
        eager_optimizer.zero_grad(set_to_none=True)
        expected = step(eager, eager_optimizer)
    assert torch.equal(loss.cpu(), expected.cpu())
    for mine, other in zip(net.parameters(), eager.parameters()):
        assert torch.equal(mine.cpu(), other.cpu())


@pytest.mark.parametrize("name", ["native_batch_norm", "_native_batch_norm_legit"])  # torchair captures the second
def test_a_batch_norm_that_does_not_train_has_the_statistics_that_its_fake_implementation_says(name):
    x, mean, variance = torch.randn(4, 2), torch.tensor([0.5, -1.0]), torch.tensor([3.0, 0.25])
    operands = (x.npu(), None, None, mean.npu(), variance.npu())
    graph, results = captured(lambda: getattr(torch.ops.aten, name)(*operands, False, 0.1, 1.0))
    graph.replay()
    expected = ((x - mean) / torch.sqrt(variance + 1), mean, 1 / torch.sqrt(variance + 1))
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result.cpu(), wanted)


def test_an_operator_without_a_fake_implementation_is_named():
    need_torch(2, 9)  # of torch_npu 2.8 to_sparse waits for the stream before it comes to that operator
    x = torch.ones(2, 2).npu()
    with pytest.raises(
        NotImplementedError, match="aten._to_sparse.default cannot be captured: it has no fake implementation"
    ):
        captured(lambda: x.to_sparse())
    graph, (values, indices) = captured(lambda: x.cummax(0))
    graph.replay()
    assert values.cpu().tolist() == [[1, 1], [1, 1]] and indices.dtype == torch.int64


def test_an_input_on_the_host_outlives_the_capture():
    """torchair writes each call's inputs into those of the capture, which it has let go: the memory must not be another's by then."""
    need_torch(2, 13)
    import torchair

    torch._dynamo.reset()
    config = torchair.CompilerConfig()
    config.mode = "reduce-overhead"
    compiled = torch.compile(
        lambda x, host, other: (x + 1, host * 2, other * 2),
        backend=torchair.get_npu_backend(compiler_config=config),
        dynamic=False,
    )
    x = torch.ones(4, device="npu")
    compiled(x, torch.full((1000,), 1), torch.full((1000,), 1))
    theirs = [torch.full((1000,), 7) for _ in range(20)]  # takes the memory of the inputs, if they are freed
    for value in range(3):
        host, other = torch.full((1000,), value), torch.full((1000,), value)
        assert compiled(x, host, other)[0].tolist() == [2] * 4
    assert all(bool((tensor == 7).all()) for tensor in theirs)
