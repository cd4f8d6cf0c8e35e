"""The eager fallback against its peers on CPU tensors, as ratios of medians from one run.

    python benchmarks/re_routing.py [--quick]

Peers: `tokens.clone()` (the cost of touching fresh pages once), split-and-cat by chunks with the counts on the host (the common Python
way), a loop over chunks with slice assignment, `copy_` into a warm buffer, and for the way back float argsort plus index_select.
Below 1 the fallback is faster.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from functools import partial

import moe_graph  # isort: skip  first: it makes torch importable where a torch_npu wheel lies without CANN
import torch
from rich.console import Console
from rich.table import Table

DOCUMENT = (16384, 7168, 16, 16)
DECODE_TOKENS = (8, 64, 256, 1024)
DECODE_CHUNKS = ((8, 8), (8, 16), (16, 16), (64, 16), (16, 256))


def seconds(functions, rounds):
    """Median seconds of each function, called in turns so that all see the same machine; short ones are repeated."""
    repeats = {}
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        function()
        repeats[name] = max(1, int(0.005 / (time.perf_counter() - start + 1e-9)))
    samples = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                function()
            samples[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(times) for name, times in samples.items()}


def make(count, hidden, ranks, experts, dtype):
    chunk = torch.randint(0, ranks * experts, (count,))
    counts = torch.bincount(chunk, minlength=ranks * experts).view(ranks, experts).to(torch.int32)
    return torch.randint(-128, 127, (count, hidden), dtype=torch.int8).to(dtype), counts, torch.rand(count)


def split_and_cat(tokens, counts):
    ranks, experts = counts.shape
    chunks = tokens.split(counts.flatten().tolist())
    return torch.cat([chunks[rank * experts + expert] for expert in range(experts) for rank in range(ranks)])


def loop_over_chunks(tokens, counts):
    sizes, out, position = counts.tolist(), torch.empty_like(tokens), 0
    starts, total = [], 0
    for row in sizes:
        starts.append([])
        for size in row:
            starts[-1].append(total)
            total += size
    for expert in range(len(sizes[0])):
        for rank in range(len(sizes)):
            size, start = sizes[rank][expert], starts[rank][expert]
            out[position : position + size] = tokens[start : start + size]
            position += size
    return out


def sorted_back(tokens, index):
    """The way back that public models use today: exact only up to 2**24 tokens."""
    return tokens.index_select(0, index.float().argsort().int())


def document_shapes(rounds):
    tokens, counts, scales = make(*DOCUMENT, torch.int8)
    operator = torch.ops.npu.npu_moe_re_routing
    routed = moe_graph.moe_re_routing(tokens, counts, per_token_scales=scales)
    warm = torch.empty_like(tokens)
    times = seconds(
        {
            "fallback": lambda: operator(tokens, counts, per_token_scales=scales),
            "clone": tokens.clone,
            "split": lambda: split_and_cat(tokens, counts),
            "loop": lambda: loop_over_chunks(tokens, counts),
            "out": lambda: moe_graph.moe_re_routing(tokens, counts, per_token_scales=scales, out=routed),
            "copy_": lambda: warm.copy_(tokens),
            "un_routing": lambda: moe_graph.moe_un_routing(tokens, counts),
            "argsort": lambda: sorted_back(tokens, routed.permute_token_idx),
        },
        rounds,
    )
    table = Table(
        "what", "ms", "against", "ms", "ratio", title="document shapes: A 16384, H 7168, N x E 16 x 16, int8, scales"
    )
    for what, peer in (
        ("fallback", "clone"),
        ("fallback", "split"),
        ("fallback", "loop"),
        ("out", "copy_"),
        ("un_routing", "argsort"),
    ):
        a, b = times[what], times[peer]
        table.add_row(what, f"{a * 1e3:.1f}", peer, f"{b * 1e3:.1f}", f"{a / b:.2f}")
    return table


def decode_shapes(rounds):
    table = Table(
        "A",
        "N x E",
        "fallback us",
        "/ split-and-cat",
        "/ loop",
        "un-routing / argsort",
        title="decode shapes: H 1024, bfloat16",
    )
    operator = torch.ops.npu.npu_moe_re_routing
    for count in DECODE_TOKENS:
        for ranks, experts in DECODE_CHUNKS:
            tokens, counts, _ = make(count, 1024, ranks, experts, torch.bfloat16)
            index = operator(tokens, counts)[2]
            times = seconds(
                {
                    "fallback": partial(operator, tokens, counts),
                    "split": partial(split_and_cat, tokens, counts),
                    "loop": partial(loop_over_chunks, tokens, counts),
                    "un_routing": partial(moe_graph.moe_un_routing, tokens, counts),
                    "argsort": partial(sorted_back, tokens, index),
                },
                rounds,
            )
            table.add_row(
                str(count),
                f"{ranks} x {experts}",
                f"{times['fallback'] * 1e6:.0f}",
                f"{times['fallback'] / times['split']:.2f}",
                f"{times['fallback'] / times['loop']:.2f}",
                f"{times['un_routing'] / times['argsort']:.2f}",
            )
    return table


def import_time():
    """Seconds that `import moe_graph` adds to `import torch`, each in fresh processes."""
    start = (
        "import time, os; os.environ['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'; import torch; t = time.perf_counter(); "
    )
    code = start + "import moe_graph; print(time.perf_counter() - t)"
    return statistics.median(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))


def peak_memory():
    """Peak memory of one call at the document's shapes beyond inputs, in multiples of the tokens' bytes (1 is the output itself)."""
    tokens, counts, scales = make(*DOCUMENT, torch.int8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.ops.npu.npu_moe_re_routing(tokens, counts, per_token_scales=scales)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / tokens.numel()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 3 if parser.parse_args().quick else 9
    console = Console()
    torch.manual_seed(0)
    memory = peak_memory()  # first: the peak of a process only grows
    console.print(document_shapes(rounds))
    console.print(decode_shapes(rounds))
    console.print(f"peak memory of a call: {memory:.2f} x the tokens' bytes (the output itself is 1)")
    console.print(f"import moe_graph, after torch: {import_time() * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
