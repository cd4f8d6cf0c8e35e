"""Who registers what, and when; and what is registered, from whom."""
