"""To int8 and smaller types, and back."""
