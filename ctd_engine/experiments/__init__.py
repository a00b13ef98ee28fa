"""Experiments: the comparisons of arXiv 2407.08946, small enough for a CPU."""
