"""Graphs from shapes alone: lowered without weights and without a device.

fakes       modules and tensors without memory
lowering    torchair's graph of them
"""
