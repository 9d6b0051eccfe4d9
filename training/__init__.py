"""Training sets, fitting, evaluation and the model registry."""
