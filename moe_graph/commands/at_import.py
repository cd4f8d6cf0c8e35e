"""Importing this module answers `python -m moe_graph ...` where that needs no torch: Python imports the package before its `__main__`."""

from moe_graph.commands import table

table.answer_at_import()
