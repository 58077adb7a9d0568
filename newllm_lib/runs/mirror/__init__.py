"""A run's second copy, on Drive or in any other folder.

`sync` keeps it up to date, and `daemon` is the process that does so beside a training; `copy` copies a folder
and reads it back; `restore` brings a run from there.
"""
