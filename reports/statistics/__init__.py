"""How good a model is, and how far that could have come out otherwise: figures over predictions."""
