"""Layers made of ops: each file one idea."""
