"""Training loops, their processes and what watches them."""
