"""Checks of graphs and converters: would GE take this graph (`inspect --check`), is this converter right (`check`).

graph       nodes against the definitions of their GE types      shapes     described shapes against inferred ones
converter   a converter against its operator, sample by sample   report     what was found, as a table
samples     the calls it is checked with                         command    `moe-graph check MODULE`
"""
