"""`python -m moe_graph plan model.py:build`: the graph of a model and what it costs, without weights and without a device."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moe_graph.foundation import given_module, starting
from moe_graph.foundation.output_path import output_path

_UNITS = {
    "": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
FITS_NOT = 3
MODES = ("max-autotune", "reduce-overhead")
# Setting of a file -> its type, and that in words.
_KINDS: dict[str, tuple[Any, str]] = {
    "build": (str, "FILE:FUNCTION"),
    "world": (int, "a whole number"),
    "rank": (int, "a whole number"),
    "mode": (str, " or ".join(MODES)),
    "dynamic": (bool, "true or false"),
    "arguments": (dict, "names and values of BUILD's arguments"),
    "tokens": ((str, list), "uniform, skewed, a file, or a list of them"),
}
SETTINGS = tuple(_KINDS)


def main(argv: Sequence[str]) -> int:
    """Run the command: 0; 1 if the plan cannot be made, 3 if it does not fit into --memory."""
    options = _parser().parse_args(argv)
    if not starting.has_device("plan"):
        return 1
    from moe_graph.planning import report
    from moe_graph.planning.errors import PlanError

    try:
        if options.dump:
            _folder(options.dump)
        if options.compare:
            report.compare(
                [(Path(path).stem, planned({**vars(options), **_settings(path)})) for path in options.compare]
            )
            return 0
        plan = planned({**vars(options), **(_settings(options.config) if options.config else {})})
    except PlanError as error:
        print(f"moe_graph: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(report.as_json(plan), indent=2, allow_nan=False))
    else:
        report.show(plan)
    if options.html:
        from moe_graph.planning import page

        page.write(plan, options.html)
    if options.memory is None:
        return 0
    lines = report.advice(plan, options.memory)
    print(
        "\n".join(lines)
        or f"fits: {report.bytes_in_words(plan.memory.total)} of {report.bytes_in_words(options.memory)}",
        file=sys.stderr,
    )
    return FITS_NOT if lines else 0


def before_torch(argv: Sequence[str]) -> None:
    """The product, said in the environment: the simulated device starts with it."""
    options = _parser().parse_args(argv)
    if options.soc is not None:
        os.environ["MOE_GRAPH_SIM_SOC"] = options.soc


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moe-graph plan",
        description="Lower the module that FILE's function BUILD gives, from shapes alone, and say what its graph costs. "
        "BUILD returns the module and the arguments of its call; while it runs, tensors have no memory.",
    )
    parser.add_argument(
        "build",
        metavar="FILE:BUILD",
        nargs="?",
        help="model.py:build, or package.module:build; may be given in a --config or --compare file",
    )
    parser.add_argument("--world", type=int, metavar="N", help="plan one rank of N; torch.distributed has them all")
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="which one (default 0)")
    parser.add_argument("--soc", choices=("A2", "A3", "950"), help="the product (default A2, or MOE_GRAPH_SIM_SOC)")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default=MODES[0],
        help="a graph for GE (default), or captured",
    )
    parser.add_argument(
        "--dynamic", action="store_true", help="sizes of inputs as symbols, as torch.compile(dynamic=True)"
    )
    parser.add_argument("--dump", metavar="DIR", help="write torchair's dumps of every kind into this folder")
    parser.add_argument(
        "--html", type=output_path, metavar="FILE", help="write the graph as a page: costs, memory, communication"
    )
    parser.add_argument("--json", action="store_true", help="the plan as JSON")
    parser.add_argument(
        "--tokens",
        action="append",
        metavar="WHAT",
        help="how tokens go to experts: uniform, skewed, or a file; may be repeated (default: uniform and skewed)",
    )
    parser.add_argument("--figures", metavar="FILE", help="figures of the product for the estimate, as YAML")
    parser.add_argument(
        "--memory",
        type=_bytes,
        metavar="SIZE",
        help="of a device, like 64GiB: does it fit? Exit status 3 if not, with what to change first",
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"settings as YAML: {', '.join(SETTINGS)}; arguments are BUILD's"
    )
    parser.add_argument("--compare", nargs="+", metavar="FILE", help="plan each of these configurations, side by side")
    return parser


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", text)
    if match is None or match[2] not in _UNITS:
        raise argparse.ArgumentTypeError(
            f"must be a number with one of {', '.join(filter(None, _UNITS))}, got {text!r}"
        )
    return int(float(match[1]) * _UNITS[match[2]])


def _settings(path: str) -> dict[str, Any]:
    import yaml

    from moe_graph.planning.errors import PlanError

    try:
        found = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise PlanError(f"{path}: {error}") from error
    if not isinstance(found, dict) or set(found) - set(SETTINGS):
        raise PlanError(
            f"{path}: settings are {', '.join(SETTINGS)}, got {sorted(found) if isinstance(found, dict) else found!r}"
        )
    for name, value in found.items():
        kind, words = _KINDS[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise PlanError(f"{path}: {name} must be {words}, got {value!r}")
    if found.get("mode", MODES[0]) not in MODES:
        raise PlanError(f"{path}: mode must be {' or '.join(MODES)}, got {found['mode']!r}")
    return found


def _folder(path: str) -> None:
    """Make the folder of the dumps before anything is lowered. Raises PlanError that says why it cannot be made."""
    from moe_graph.planning.errors import PlanError

    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"--dump {path}: {error.strerror}") from error


def planned(settings: dict[str, Any]) -> Any:
    """The plan of settings: the options of the command, by name, and `arguments` of the function that builds the model."""
    import torch

    from moe_graph.planning import fakes, formats
    from moe_graph.planning.entry import plan
    from moe_graph.planning.errors import PlanError

    build = _function(settings.get("build"))
    arguments = settings.get("arguments") or {}
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        raise PlanError(f"{settings['build']}: {error}") from None
    mode = fakes.fake_mode()
    with _rank(settings.get("world"), settings.get("rank") or 0), fakes.modules_convert(), formats.noted():
        with mode, torch.device("npu"):
            made = build(**arguments)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], (tuple, list))):
            kinds = [type(part).__name__ for part in made] if isinstance(made, tuple) else type(made).__name__
            raise PlanError(f"{settings['build']} must return (module, (argument, ...)), got {kinds}")
        model, inputs = made
        tokens = settings.get("tokens") or ("uniform", "skewed")
        return plan(
            model,
            *inputs,
            dynamic=bool(settings.get("dynamic")),
            mode=settings.get("mode"),
            dump=settings.get("dump"),
            tokens=[tokens] if isinstance(tokens, str) else tokens,
            figures=settings.get("figures"),
        )


def _function(place: str | None) -> Callable[..., Any]:
    from moe_graph.planning.errors import PlanError

    source, _, name = (place or "").rpartition(":")
    if not source or not name:
        raise PlanError(f"what is to be planned must be FILE:FUNCTION, such as model.py:build, got {place!r}")
    try:
        found = getattr(given_module.load(source), name, None)
    except given_module.MissingError as error:
        raise PlanError(str(error)) from None
    if not callable(found):
        raise PlanError(f"{source} has no function {name!r}")
    return found


@contextlib.contextmanager
def _rank(world: int | None, rank: int) -> Iterator[None]:
    from moe_graph.planning.errors import PlanError
    from moe_graph.simulator.communication import lone_rank

    if world is None and rank:
        raise PlanError(f"rank {rank} is of a world: say of how many, with --world")
    if world is None:
        yield
        return
    if not 0 <= rank < world:
        raise PlanError(f"rank must be at least 0 and below the world's size {world}, got {rank}")
    with lone_rank.alone(world, rank):
        yield
