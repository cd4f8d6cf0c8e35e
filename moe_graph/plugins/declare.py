"""GE types of one's own: their definitions, and their kernels in the host engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from moe_graph.definitions import known, op_def, reg_op
from moe_graph.definitions.definition import Definition


def define(definition: str | Path | Definition) -> tuple[str, ...]:
    """Make GE types known on the simulated device: to `torchair.ge.custom_op`, `check_cann_compat` and the converters torchair generates.

    Args:
        definition: REG_OP text (operator_reg.h), the C++ of op_host (classes derived from OpDef), the path of a file of either, or a
            `Definition`. A text may hold several operators.

    Returns:
        The GE types that were defined.

    Raises:
        ValueError: if it defines no operator, a clause cannot be read, or a type is declared already with another definition.
        OSError: if the file cannot be read.
    """
    if isinstance(definition, Definition):
        found = [definition]
    else:
        text = definition.read_text() if isinstance(definition, Path) else definition
        found = reg_op.parse(text) + op_def.parse(text)
    if not found:
        where = definition if isinstance(definition, Path) else "the text"
        raise ValueError(f"definition: {where} holds neither REG_OP(...) nor a class derived from OpDef")
    known.declare(found)
    return tuple(one.type for one in found)


def ge_kernel(*ge_types: str, assigns: str | tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """The decorated function computes these GE types in the host engine: `moe_graph.engine.kernel`, after the engine's own.

    Its positional parameters are GE's inputs by their names (CPU tensors), its keyword-only ones the attributes.

    Args:
        ge_types: the types, each of which must not have a kernel yet.
        assigns: the inputs that the function writes to.
    """
    from moe_graph import engine

    return engine.kernel(*ge_types, assigns=assigns)
