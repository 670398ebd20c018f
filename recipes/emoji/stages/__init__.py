"""The stages of the emoji recipe, from captions to trained models."""
