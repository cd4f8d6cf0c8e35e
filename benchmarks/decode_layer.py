"""One decode step of a layer with latent attention (examples/decoder.py) on the simulated device, and the same in plain PyTorch.

    OMP_NUM_THREADS=1 python benchmarks/decode_layer.py [--quick]

The peer has the same mathematics in operators of torch on CPU tensors: float32, as a device's kernels compute inside, with the weights and
caches in float32. Beside it the peer in bfloat16, which rounds each step, and is fast on a processor with instructions for it.
"""

import moe_graph.simulator  # noqa: F401  isort: skip  first: it starts the device

import copy
import sys
from pathlib import Path

import measure
import torch
import torchair
from torch.nn.functional import silu

from moe_graph.engine.evaluator import Program

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from decoder import Config, Layer, Step  # noqa: E402

TINY = Config(
    hidden=1024,
    dense_inner=2816,
    heads=16,
    query_rank=512,
    latent=512,
    rope=64,
    head=128,
    block=128,
    requests=8,
    length=1024,
)


def rms_norm(x, gamma):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * gamma


def turned(x, cos, sin):
    """The even elements first and the odd ones behind them, then turned by halves."""
    one, two = x[..., ::2], x[..., 1::2]
    x = torch.cat((one, two), -1)
    return x * cos + torch.cat((-two, one), -1) * sin


def plain(layer, x, residual, step):
    """The layer's mathematics in operators of torch alone; caches and weights are the layer's own."""
    a, config = layer.attention, layer.attention.config
    requests = len(x)
    residual = x + residual
    x = rms_norm(residual, layer.before.gamma)
    query = (rms_norm(x @ a.query_down, a.query_norm) @ a.query_up).view(requests, config.heads, -1)
    query, rope = query.split([config.head, config.rope], -1)
    query = torch.bmm(query.transpose(0, 1), a.key_up).transpose(0, 1)  # in the space of the latents
    rope = turned(rope, step.cos.unsqueeze(1), step.sin.unsqueeze(1))
    latent, key_rope = (x @ a.latent_down).split([config.latent, config.rope], -1)
    a.latents.view(-1, config.latent)[step.slots] = rms_norm(latent, a.latent_norm)
    a.ropes.view(-1, config.rope)[step.slots] = turned(key_rope, step.cos, step.sin)
    latents = a.latents[step.pages].view(requests, -1, config.latent)
    ropes = a.ropes[step.pages].view(requests, -1, config.rope)
    scores = torch.baddbmm(torch.bmm(rope, ropes.mT), query, latents.mT) * a.scale
    hidden = torch.arange(scores.shape[-1]) >= torch.tensor(step.lengths)[:, None]
    weights = scores.float().masked_fill(hidden[:, None], -torch.inf).softmax(-1).to(x.dtype)
    y = torch.bmm(torch.bmm(weights, latents).transpose(0, 1), a.value_up).transpose(0, 1)
    residual = residual + y.reshape(requests, -1) @ a.out
    left, right = (rms_norm(residual, layer.after.gamma) @ layer.mlp.up).chunk(2, -1)
    return (silu(left) * right) @ layer.mlp.down, residual


def moved(step, device, dtype=None):
    """The step's tensors on a device."""
    cos, sin = (t.to(device=device, dtype=dtype or t.dtype) for t in (step.cos, step.sin))
    return Step(False, cos, sin, step.slots.to(device), step.pages.to(device), None, step.queries, step.lengths)


def build():
    """The layer with random weights and caches, and a step's arguments."""
    torch.manual_seed(0)
    layer = Layer(TINY, dense=True)
    for parameter in layer.parameters():
        size = parameter.shape[-2] if parameter.dim() > 1 else 1
        parameter.data.copy_(torch.randn(parameter.shape) / size**0.5)
    for buffer in layer.buffers():
        buffer.copy_(torch.randn(buffer.shape))
    requests, pages = TINY.requests, TINY.length // TINY.block
    table = torch.randperm(requests * pages).view(requests, pages).to(torch.int32)
    lengths = [TINY.length - 37 * i for i in range(requests)]
    slots = torch.stack(
        [table[i, (n - 1) // TINY.block] * TINY.block + (n - 1) % TINY.block for i, n in enumerate(lengths)]
    )
    angles = torch.randn(requests, TINY.rope // 2).repeat(1, 2)
    step = Step(
        False,
        angles.cos().to(TINY.dtype),
        angles.sin().to(TINY.dtype),
        slots.long(),
        table,
        None,
        list(range(1, requests + 1)),
        lengths,
    )
    return layer, torch.randn(2, requests, TINY.hidden).to(TINY.dtype), step


def engines_run(compiled):
    """A call of the compiled function, and the engine's run of its graph alone with the same inputs."""
    run, seen = Program.run, []

    def watched(program, inputs):
        seen.append((program, inputs))
        return run(program, inputs)

    Program.run = watched
    try:
        result = compiled()
    finally:
        Program.run = run
    ((program, inputs),) = seen
    return result, lambda: program.run(inputs)


def rows():
    """H 1024, 16 heads, latent 512, 8 requests of 765 to 1024 tokens, bfloat16."""
    layer, (x, residual), step = build()
    on_npu, npu_inputs, npu_step = copy.deepcopy(layer).npu(), (x.npu(), residual.npu()), moved(step, "npu")
    compiled = torch.compile(
        on_npu,
        backend=torchair.get_npu_backend(compiler_config=torchair.CompilerConfig()),
        dynamic=False,
        fullgraph=True,
    )
    wide, wide_step = copy.deepcopy(layer).float(), moved(step, "cpu", torch.float32)

    def eager():
        result = on_npu(*npu_inputs, npu_step)
        torch.npu.synchronize()
        return result

    def graph():
        result = compiled(*npu_inputs, npu_step)
        torch.npu.synchronize()
        return result

    with torch.no_grad():
        expected = plain(copy.deepcopy(wide), x.float(), residual.float(), wide_step)
        result, run = engines_run(graph)
        for found in (eager(), result, plain(copy.deepcopy(layer), x, residual, step)):
            for value, wanted in zip(found, expected):
                torch.testing.assert_close(value.cpu().float(), wanted, rtol=0.2, atol=0.2)
        times = measure.times(
            {
                "eager": eager,
                "engine": run,
                "graph": graph,
                "bfloat16": lambda: plain(layer, x, residual, step),
                "float32": lambda: plain(wide, x.float(), residual.float(), wide_step),
            },
            block=0,
        )
    yield times.row("eager, of plain PyTorch", "eager", "float32", 1.5)
    yield times.row("the engine's run of the graph, of plain PyTorch", "engine", "float32", 1.2)
    yield times.row("the compiled call, of plain PyTorch", "graph", "float32")
    yield times.row("eager, of plain PyTorch in bfloat16", "eager", "bfloat16")
    yield times.row("the engine's run, of plain PyTorch in bfloat16", "engine", "bfloat16")


if __name__ == "__main__":
    measure.main("One decode step of a layer with latent attention, bfloat16", rows)
