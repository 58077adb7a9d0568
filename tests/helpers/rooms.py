"""The rooms of the package, as they stand on each other."""

from __future__ import annotations

# Each room may use itself and those in the rows above it.
FLOORS = (
    ("errors", "lazy", "lazy_dynamo", "pip_report", "plain_yaml", "preload"),
    ("console", "device", "removed"),
    ("hub",),
    ("hub_models",),
    ("runs",),
    ("recipe",),
    ("ops",),
    ("layers",),
    ("models", "data"),
    ("checkpoints",),
    ("generation",),
    ("evaluation",),
    ("export", "serve"),
    ("training",),
    ("api",),
    ("colab", "cli"),
    ("__main__",),
)
