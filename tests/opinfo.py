"""torch's own samples of every operator, on the simulated device and on the CPU.

    python tests/opinfo.py [--every N] [--first N] [--record] [name ...]

prints the classes and what did not pass; --record writes them to operators.json.

pass          results, in-place and out= forms, and for float32 the gradients, are the CPU's
unsupported   torch or torch_npu refuse it before a kernel of the device is asked (REFUSED): so they do on an NPU
failing       everything else
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import re
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import moe_graph.simulator  # noqa: F401  it starts the device, before torch is imported

# isort: split
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import SampleInput
from torch.utils._pytree import tree_map

from moe_graph.simulator.eager import install as eager

DTYPES = (torch.float32, torch.int64, torch.bfloat16, torch.bool, torch.complex64)
PASS, UNSUPPORTED, FAILING = "pass", "unsupported", "failing"

# Values that nobody has set, or that depend on the generator of the device (found out by a second run with another seed).
_UNSET = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "empty_permuted",
    "new_empty_strided",
    "resize_",
    "resize_as_",
)
# Tolerances where torch itself computes bfloat16 less exactly on devices than on the CPU: here it sums in bfloat16, there in float32.
_ROUGH = {"nn.functional.linear_cross_entropy": 0.05}

# How torch and torch_npu refuse, and why. None of these is the simulated device's word.
REFUSED = {
    r"Could not run '[\w:.]+' with arguments from the 'Sparse\w*npu' backend": "no sparse kernel for NPU tensors",
    r"DispatchStub: missing kernel for npu": "torch_npu registers neither the operator nor the kernel that torch's own composition uses",
    r"only supports CPU, CUDA and XPU device type, got: npu": "torch refuses the device",
    r"expected tensor_indices_or_sections to be on cpu": "torch wants this argument on the CPU",
    r"NPU contiguous operator only supported contiguous memory format": "torch_npu's contiguous() takes no memory format",
    r"is not differentiable with respect to argument '\w+'": "torch_npu's autograd has no such gradient",
    r"a gradient is missing": "torch_npu's autograd has no such gradient",
}
# Samples that torch_npu refuses of operators whose other samples it takes: its conversions take no other memory format. They are left out.
_SAMPLES_REFUSED = "Only contiguous_format or preserve_format is supported"
RECORD = Path(__file__).with_name("operators.json")


@dataclass(frozen=True)
class Outcome:
    """What became of one operator in one dtype. `message` is empty for a pass."""

    operator: str
    dtype: str
    outcome: str
    samples: int
    message: str = ""


def name_of(op) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def operators(every: int = 1, first: int = 0) -> list:
    """Every n-th of torch's operator descriptions."""
    return list(op_db)[first::every]


def walk(op, dtypes=DTYPES, samples: int = 64) -> list[Outcome]:
    """All dtypes of one operator: functional with gradients, in-place and out= forms. `samples`: at most so many of each dtype."""
    return [_one(op, dtype, samples) for dtype in dtypes if dtype in op.supported_dtypes("cpu")]


def _one(op, dtype, limit) -> Outcome:
    label = str(dtype).removeprefix("torch.")
    count = 0
    try:
        gradients = dtype == torch.float32 and op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")
        inputs = op.sample_inputs("cpu", dtype, requires_grad=gradients)
        for index, sample in enumerate(itertools.islice(inputs, limit)):
            count += _sample(op, sample, gradients)
            if index < 2:
                _in_place(op, sample)
                _out(op, sample)
    except Exception as error:  # the class of whatever goes wrong is the result
        text = f"{type(error).__name__}: {error}"
        for pattern, reason in REFUSED.items():
            if re.search(pattern, text):
                return Outcome(name_of(op), label, UNSUPPORTED, count, reason)
        return Outcome(name_of(op), label, FAILING, count, " ".join(text.split())[:600])
    return Outcome(name_of(op), label, PASS, count)


def _sample(op, sample: SampleInput, gradients: bool) -> int:
    try:
        expected = _run(op, _copied(sample, "cpu"), gradients)
    except Exception:
        return 0  # no result to compare with
    try:
        got = _run(op, _copied(sample, "npu"), gradients)
    except RuntimeError as error:
        if _SAMPLES_REFUSED in str(error):
            return 0
        raise
    if op.name in _CONVERSIONS:
        expected = [tree_map(_as_float32, expected[0]) if _has_float32(got[0]) else expected[0], expected[1]]
    if gradients and [g is None for g in got[1]] != [g is None for g in expected[1]]:
        raise AssertionError("a gradient is missing")

    def wide():
        return _run(op, _widened(sample), gradients)

    _compare(op, got, expected, lambda: _run(op, _copied(sample, "cpu"), gradients), wide)
    return 1


# torch_npu makes float32 where float64 is asked for by the dtype alone.
_CONVERSIONS = ("to", "double")


def _has_float32(values) -> bool:
    return any(tensor.dtype == torch.float32 for tensor in _flat(values))


def _as_float32(value):
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.float64 else value


def _run(op, sample: SampleInput, gradients: bool):
    torch.manual_seed(0)
    result = op(sample.input, *sample.args, **sample.kwargs)
    if not gradients:
        return [result, []]
    shown = sample.output_process_fn_grad(result) if sample.output_process_fn_grad else result
    roots = [t for t in _flat(shown) if t.requires_grad and (t.is_floating_point() or t.is_complex())]
    leaves = [t for t in _flat([sample.input, sample.args, sample.kwargs]) if t.requires_grad and t.is_leaf]
    if not roots or not leaves:
        return [result, []]
    grads = torch.autograd.grad(
        [r.abs().sum() if r.is_complex() else r.sum() for r in roots], leaves, allow_unused=True
    )
    return [result, list(grads)]


def _in_place(op, sample: SampleInput) -> None:
    function = op.get_inplace()
    if function is None or not isinstance(sample.input, torch.Tensor) or sample.broadcasts_input:
        return
    results = []
    for device in ("cpu", "npu"):
        copy = _copied(sample, device, detach=True)
        torch.manual_seed(0)
        try:
            result = function(copy.input, *copy.args, **copy.kwargs)
        except Exception:
            if device == "cpu":
                return
            raise
        assert result is copy.input, "the in-place form returns another tensor"
        results.append(result)

    def again():
        copy = _copied(sample, "cpu", detach=True)
        return function(copy.input, *copy.args, **copy.kwargs)

    _compare(op, results[1], results[0], again)


def _out(op, sample: SampleInput) -> None:
    if not op.supports_out or "out" in sample.kwargs:
        return
    host = _copied(sample, "cpu", detach=True)
    try:
        expected = op(host.input, *host.args, **host.kwargs)
        if not _flat(expected) or any(t.layout != torch.strided for t in _flat(expected)):
            return
    except Exception:
        return
    for fits in (True, False):
        expected_out = _empty(expected, "cpu", fits)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.manual_seed(0)
                op(host.input, *host.args, **host.kwargs, out=expected_out)
        except Exception:
            return
        out = _empty(expected, "npu", fits)
        copy = _copied(sample, "npu", detach=True)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            op(copy.input, *copy.args, **copy.kwargs, out=out)
        _compare(op, out, expected_out, lambda: op(host.input, *host.args, **host.kwargs))


def _empty(like, device: str, fits: bool):
    if isinstance(like, torch.Tensor):
        return torch.empty(like.shape if fits else (3,), dtype=like.dtype, device=device)
    return tuple(_empty(item, device, fits) for item in like)


def _copied(sample: SampleInput, device: str, detach: bool = False) -> SampleInput:
    def copied(value):
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided:
                return value.detach().to(device)
            made = value.detach()
            if made._is_view() or not made.is_contiguous():
                # The same view of the same memory: strides, gaps and overlaps are part of the sample.
                base = torch.empty(0, dtype=made.dtype).set_(made.untyped_storage()).to(device, copy=True)
                made = base.as_strided(made.size(), made.stride(), made.storage_offset())
            else:
                made = made.to(device, copy=True)
            return made.requires_grad_(value.requires_grad and not detach)
        return value

    def placed(value):
        """A sample names its device too."""
        if value == "cpu" or value == torch.device("cpu"):
            return device
        return value

    made = sample.transform(copied)
    made.output_process_fn_grad = sample.output_process_fn_grad
    made.args = tuple(placed(v) if isinstance(v, (str, torch.device)) else v for v in made.args)
    made.kwargs = {k: placed(v) if isinstance(v, (str, torch.device)) else v for k, v in made.kwargs.items()}
    return made


def _widened(sample: SampleInput) -> SampleInput:
    """On the CPU, in the widest dtype."""

    def widened(value):
        if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()):
            wide = torch.complex128 if value.is_complex() else torch.float64
            return value.detach().to(wide).requires_grad_(value.requires_grad)
        return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value

    made = sample.transform(widened)
    made.output_process_fn_grad = sample.output_process_fn_grad
    return made


def _compare(op, got, expected, again, wide=None) -> None:
    """`again`: computes on the CPU anew. `wide`: computes on the CPU in the widest dtype; [results, gradients].

    Where torch composes an operator otherwise than on the CPU it rounds otherwise: then the NPU's error may be four times the CPU's.
    """
    got_flat, expected_flat = _flat(got), _flat(expected)
    assert len(got_flat) == len(expected_flat), f"{len(got_flat)} tensors, {len(expected_flat)} expected"
    for a, b in zip(got_flat, expected_flat):
        assert a.shape == b.shape and a.dtype == b.dtype, f"{a.shape} {a.dtype}, {b.shape} {b.dtype} expected"
    if op.name.removeprefix("nn.functional.") in _UNSET:
        return
    try:
        for a, b in zip(got_flat, expected_flat):
            rough = _ROUGH.get(op.name) if a.dtype == torch.bfloat16 else None
            tolerance = dict(rtol=rough, atol=rough) if rough else {}
            torch.testing.assert_close(a.detach().cpu(), b.detach().cpu(), equal_nan=True, **tolerance)
        if not got_flat:
            assert str(got) == str(expected), f"{got!r}, {expected!r} expected"
    except AssertionError:
        if not _is_random(expected_flat, again) and not (wide and _is_as_close(got_flat, expected_flat, wide)):
            raise


def _is_as_close(got, expected, wide) -> bool:
    try:
        exact = _flat(wide())
    except Exception:
        return False
    if [e.shape for e in exact] != [e.shape for e in expected]:
        return False

    for a, b, e in zip(got, expected, exact):
        if not e.numel() or torch.equal(a.cpu(), b):
            continue
        if not (b.is_floating_point() or b.is_complex()):
            return False
        far, allowed = ((f.detach().cpu().to(e.dtype) - e.detach()).abs().max() for f in (a, b))
        if not far <= 4 * (allowed + torch.finfo(b.dtype).eps * e.abs().max()):
            return False
    return True


def _is_random(expected, again) -> bool:
    """Does it give something else with another seed? Some descriptions set the seed themselves, and the state back."""
    original, seeds = torch.manual_seed, itertools.count(12345)
    torch.manual_seed = lambda seed: original(next(seeds))
    try:
        for _ in range(20):
            other = _flat(again())
            if any(not torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(other, expected)):
                return True
        return False
    finally:
        torch.manual_seed = original


def _flat(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in _flat(item)]


def record(outcomes: list[Outcome]) -> dict:
    """What operators.json holds: counts, and what did not pass with its reason."""
    counts = collections.Counter((o.dtype, o.outcome) for o in outcomes)
    served = collections.Counter(by for name, by in eager.coverage().items() if name.startswith("aten::"))
    return {
        "torch": torch.__version__.partition("+")[0],
        "operators": len({o.operator for o in outcomes}),
        "counts": {f"{dtype} {outcome}": count for (dtype, outcome), count in sorted(counts.items())},
        "not passing": sorted([o.operator, o.dtype, o.outcome, o.message] for o in outcomes if o.outcome != PASS),
        "registered by torch_npu, served by": {by or "nobody": count for by, count in sorted(served.items())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    outcomes = []
    for op in operators(options.every, options.first):
        if options.names and not any(name in (op.name, name_of(op)) for name in options.names):
            continue
        began = time.perf_counter()
        for outcome in walk(op):
            outcomes.append(outcome)
            if outcome.outcome != PASS:
                print(
                    f"{outcome.outcome:12}{outcome.operator} {outcome.dtype} #{outcome.samples}: {outcome.message}",
                    flush=True,
                )
        if time.perf_counter() - began > 5:
            print(f"slow        {name_of(op)} {time.perf_counter() - began:.1f} s", flush=True)
    print(record(outcomes)["counts"], f"{time.perf_counter() - start:.0f} s")
    if options.record:
        RECORD.write_text(json.dumps(record(outcomes), indent=1) + "\n")


if __name__ == "__main__":
    main()
