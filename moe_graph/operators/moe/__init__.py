"""The gate of a Mixture-of-Experts layer, the routing of its tokens and their way back."""
