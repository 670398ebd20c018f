"""Alignment of an edge with its cloud, and of a codec with what is sent."""
