"""Operations with a plain PyTorch reference each, one folder per operation."""
