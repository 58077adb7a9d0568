"""Colab's own package, faked: what the library calls, and a record of the calls."""

from __future__ import annotations

import sys
import types

import pytest


@pytest.fixture
def colab(monkeypatch):
    """Makes this process look like Colab; `.mounted` and `.downloaded` list calls, `.refuse` is Drive's
    error.
    """
    calls = types.SimpleNamespace(mounted=[], downloaded=[], refuse=None)

    def mount(path):
        if calls.refuse:
            raise calls.refuse
        calls.mounted.append(path)

    google, package = types.ModuleType("google"), types.ModuleType("google.colab")
    package.drive = types.SimpleNamespace(mount=mount)
    package.files = types.SimpleNamespace(download=calls.downloaded.append)
    google.colab = package
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", package)
    return calls
