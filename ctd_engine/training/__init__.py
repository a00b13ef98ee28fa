"""Training: data, small models, the trainer and checkpoints."""
