"""The losses and samplers in the shape of other projects."""
