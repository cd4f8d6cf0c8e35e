"""`npu_moe_re_routing` itself: index, fallback, gradient, buffers, front end, and the comparison of fallback and kernel."""
