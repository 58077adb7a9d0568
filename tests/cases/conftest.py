"""The data room's fixtures, for the cases too."""

from tests.helpers.data_fixtures import cache, recipe  # noqa: F401
