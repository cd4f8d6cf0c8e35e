"""Conformance: every case that torchair declares for its converters, lowered, run on the host engine and compared with eager PyTorch.

cases         torchair's declarations as runnable cases
lowering      one call through AOTAutograd and torchair
run           run and classify one case
distribution  how random operators are checked
report        table, list, JSON
command       `python -m moe_graph conformance`
"""
