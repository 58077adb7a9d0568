"""Data sets too large to be prepared before training: cut into segments, packed by processes of their own
while training runs.
"""
