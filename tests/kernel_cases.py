"""Of the tests of every path of the nearest-code search: whether Triton is interpreted."""

import os

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton reads it when it is imported, so its tests run in a process of their own."""
