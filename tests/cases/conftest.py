"""The data room's fixtures, for the cases too."""

from tests.data.conftest import cache, recipe  # noqa: F401
