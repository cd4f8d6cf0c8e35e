"""What is registered for the operator, and from whom."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from moe_graph import converters
from moe_graph.foundation import compat, contract, product
from moe_graph.registration import register as registration

_PACKAGE = Path(__file__).parents[1]
_NOBODY = "nobody"


@dataclass(frozen=True)
class Row:
    """One part of the operator.

    Attributes:
        part: "schema", "fake", "any-device kernel", "NPU kernel", "autograd", "converter" or "product"
        provider: "moe_graph", "torch_npu", "torchair", "nobody" or a file; for the product its name
        detail: what it is
    """

    part: str
    provider: str
    detail: str


@dataclass(frozen=True, repr=False)
class Status:
    """What `status` has found. `print` shows it as a table.

    Attributes:
        rows: a row for each part
        versions: of the packages they hold for
    """

    rows: tuple[Row, ...]
    versions: dict[str, str]

    def provider(self, part: str) -> str:
        """Who provides this part, for instance `status().provider("converter")`."""
        return next(row.provider for row in self.rows if row.part == part)

    def __repr__(self) -> str:
        """One line: who provides each part."""
        return f"<Status of {contract.QUALNAME}: {', '.join(f'{row.part} {row.provider}' for row in self.rows)}>"

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        import html

        cells = [(row.part, row.provider, row.detail) for row in self.rows]
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in cells)
        versions = html.escape(", ".join(f"{name} {number}" for name, number in self.versions.items()))
        return f"<table><tr><th>part</th><th>provided by</th><th>what</th></tr>{rows}</table><p>{versions}</p>"

    def __str__(self) -> str:
        from rich.console import Console  # only here: it is half of what importing moe_graph would take
        from rich.table import Table

        table = Table("part", "provided by", "what", title=f"{contract.QUALNAME}")
        for row in self.rows:
            table.add_row(row.part, row.provider, row.detail)
        console = Console(width=120, file=None)
        with console.capture() as captured:
            console.print(table)
            console.print(", ".join(f"{name} {number}" for name, number in self.versions.items()), highlight=False)
        return captured.get().rstrip()


def _owner(source: str) -> str:
    """Whose file registered a kernel or a schema."""
    if str(_PACKAGE) in source:
        return "moe_graph"
    if "torch_npu" in source or "op_plugin" in source or "op-plugin" in source:
        return "torch_npu"
    if source.startswith("/dev/null"):  # a kernel in Python: up to torch 2.8 the dispatcher does not say in which file
        return "moe_graph" if registration.is_registered() else "Python"
    return source


def _kernel_sources() -> dict[str, str]:
    """Dispatch key -> "FILE:LINE" of the kernel in force, from the dispatcher's own record."""
    sources: dict[str, str] = {}
    for line in torch._C._dispatch_dump(contract.QUALNAME).splitlines():
        key, registered, rest = line.partition(": registered at ")
        if registered:  # later lines of the same key are kernels it has replaced
            sources.setdefault(key.split("[")[0].strip(), rest.split(" :: ")[0])
    return sources


def _versions() -> dict[str, str]:
    found = {}
    for name in ("moe_graph", "torch", "torch_npu", "protobuf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found["torch"] = torch.__version__  # tells the build, too
    if "torch_npu" not in sys.modules and found["torch_npu"] != "not installed":
        found["torch_npu"] += " (not loaded)"
    return found


def status() -> Status:
    """What is registered for `npu_moe_re_routing` right now, and from whom: schema, fake implementation, kernels, autograd, converter."""
    schema = compat.schema_of(contract.QUALNAME)
    if schema is None:
        return Status((Row("schema", _NOBODY, "moe_graph.register() defines it"),), _versions())
    sources = _kernel_sources()

    def kernel(part: str, key: str, detail: str) -> Row:
        return Row(part, _owner(sources[key]) if key in sources else _NOBODY, f"{detail} (dispatch key {key})")

    has_dtype = "with" if "tokens_dtype" in str(schema) else "without"
    converter = converters.current()
    if converter is not None:
        converter_row = Row(
            "converter", "moe_graph" if converters.is_ours(converter) else "torchair", converter.__module__
        )
    elif not converters.torchair_is_loaded():
        converter_row = Row("converter", _NOBODY, "torchair is not loaded; ours follows its import")
    else:
        converter_row = Row("converter", _NOBODY, "")
    rows = (
        Row("schema", "moe_graph" if registration.defines_schema() else "torch_npu", f"{has_dtype} tokens_dtype"),
        kernel("fake", "Meta", "fake implementation: FakeTensor, meta device"),
        kernel("any-device kernel", "CompositeExplicitAutograd", "eager fallback of index_select"),
        kernel("NPU kernel", "PrivateUse1", "torch_npu's C++ adapter"),
        kernel("autograd", "Autograd", "gradient by transposed counts"),
        converter_row,
        Row("product", product.current_product().name, "rules the converter lowers by"),
    )
    return Status(rows, _versions())
