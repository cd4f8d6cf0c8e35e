"""Definitions of GE's operator types: what a node of a graph may have for inputs, outputs and attributes. Imports no torch.

definition   a definition, and what may stand in it     reg_op   read from REG_OP text (operator_reg.h)
known        found by type: declared, or torchair's     op_def   read from op_host's C++ (op_def_registry.h)
newer        types of which torchair's text is not what the kernel is
torchair_sources   the files of the installed wheel that this text, and the functions' signatures, are read from
"""
