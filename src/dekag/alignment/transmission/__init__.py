"""T-KA: CALA and its rivals."""
