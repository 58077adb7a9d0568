"""What operations share: the choice of an implementation, and pieces of kernels."""
