"""One rank of the checks that need more than the example's own run. The first argument names the check; it prints "rank N: ok"."""

import importlib.util
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import moe_graph  # noqa: F401  isort: skip  first: it makes torch importable where a torch_npu wheel lies without CANN
import torch
import torch.distributed as dist

specification = importlib.util.spec_from_file_location("ep_moe", Path(__file__).parents[2] / "examples" / "ep_moe.py")
ep_moe = importlib.util.module_from_spec(specification)
sys.modules["ep_moe"] = ep_moe
specification.loader.exec_module(ep_moe)

RANK = int(os.environ["LOCAL_RANK"])


def layers(dtype=torch.float32, **options):
    """The configuration, the weights on the CPU, and this rank's part of the layer on the device."""
    config = ep_moe.Config(dtype=dtype, experts=4 * dist.get_world_size(), groups=dist.get_world_size(), **options)
    weights = ep_moe.Weights(config, torch.linspace(0, 0.1, config.experts))
    return config, weights, ep_moe.Layer(ep_moe.Weights(config, weights.bias.clone()).to(ep_moe.DEVICE), config)


def tokens(count, config):
    return torch.randn(count, config.hidden, generator=torch.Generator().manual_seed(RANK)).to(config.dtype)


def gradients():
    """Those of the tokens, of this rank's experts and of what every rank has, against the dense layer's."""
    config, weights, layer = layers()
    x = tokens(9 + 5 * RANK, config)
    factor = torch.randn(x.shape, generator=torch.Generator().manual_seed(7 + RANK))
    mine, dense = x.clone().to(ep_moe.DEVICE).requires_grad_(), x.clone().requires_grad_()
    (layer(mine) * factor.to(ep_moe.DEVICE)).sum().backward()
    (ep_moe.dense(dense, weights, config) * factor).sum().backward()
    torch.testing.assert_close(mine.grad.cpu(), dense.grad, rtol=1e-4, atol=1e-5)
    for name in ("up", "down"):  # the tokens of all ranks went through an expert
        expected = getattr(weights, name).grad
        total = expected.to(ep_moe.DEVICE)
        dist.all_reduce(total)
        local = config.experts // dist.get_world_size()
        part = slice(RANK * local, (RANK + 1) * local)
        found = getattr(layer.weights, name).grad
        torch.testing.assert_close(found[part], total[part], rtol=1e-4, atol=1e-5)
        assert not found.cpu()[torch.arange(config.experts) // local != RANK].any()
    for name in ("gate", "shared_up", "shared_down"):
        found, expected = getattr(layer.weights, name).grad.cpu(), getattr(weights, name).grad
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def one_graph():
    """One compiled graph serves every token count after the AlltoAll; eager and compiled agree on each rank."""
    import torchair

    config, weights, layer = layers(torch.bfloat16)
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    graphs = []

    def counting(graph_module, inputs):
        graphs.append(graph_module)
        return backend(graph_module, inputs)

    layer.compile(counting)
    compiled = layer.compiled
    with torch.no_grad():
        for count in (16, 3, 0, 50, 17):
            x = tokens(count * (RANK + 1), config).to(ep_moe.DEVICE)
            layer.compiled = None
            eager = layer(x)
            layer.compiled = compiled
            torch.testing.assert_close(layer(x), eager, rtol=0, atol=0)
    assert len(graphs) == 1, f"{len(graphs)} graphs"


def lost():
    """The last rank dies in the middle; the others must see an error, soon."""
    config, weights, layer = layers(torch.bfloat16)
    with torch.no_grad():
        layer(tokens(8, config).to(ep_moe.DEVICE))
        if RANK == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        start = time.monotonic()
        try:
            layer(tokens(8, config).to(ep_moe.DEVICE))
        except RuntimeError as error:
            print(f"rank {RANK}: error after {time.monotonic() - start:.1f} s: {error}", flush=True)
            raise


def main():
    if ep_moe.DEVICE == "npu":
        torch.npu.set_device(RANK)
    dist.init_process_group("hccl" if ep_moe.DEVICE == "npu" else "gloo", timeout=timedelta(seconds=60))
    {"gradients": gradients, "one_graph": one_graph, "lost": lost}[sys.argv[1]]()
    print(f"rank {RANK}: ok\n", end="", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
