"""As much of Colab's own package as the library calls."""
