"""The error of a plan that cannot be made."""


class PlanError(ValueError):
    """A plan cannot be made; the message names the node, and its line where that is known."""
