"""Eager operators on NPU tensors, by functions on CPU tensors."""
