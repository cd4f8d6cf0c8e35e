"""GE's data dump: the tensors of each operator of a graph, as a device writes them with `config.dump_config`, and here.

operator_file   one operator's inputs and outputs in one file      folder    the files of a dump, by graph, run and operator
compare         two dumps, operator by operator                    command   `python -m moe_graph compare-data A B`
"""
