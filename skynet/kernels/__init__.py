"""Kernels in C: products with small weights at the speed of the memory bus."""
