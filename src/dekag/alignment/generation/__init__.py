"""G-KA: MAKD and its rivals."""
