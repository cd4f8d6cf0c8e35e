"""The backend hccl of torch.distributed, by gloo on the same memory."""
