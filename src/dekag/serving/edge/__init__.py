"""The edge as a service: it draws, sends over the air, and keeps its updates fresh."""
