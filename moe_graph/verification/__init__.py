"""Does this machine's kernel do what the fallback does? `python -m moe_graph verify`.

grid      the calls: shapes, dtypes, modes        run      one call by one implementation, compared and timed
calls     a call or two of the other operators    operators  each against its reference
machine   versions and device of the report       report   table and JSON
command   the command
"""
