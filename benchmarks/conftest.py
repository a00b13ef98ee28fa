"""Benchmarks are short by default; `--benchmark-full` runs them at the sizes of the tables."""

from __future__ import annotations

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--benchmark-full",
        action="store_true",
        help="The sizes of the published tables: more draws, turns, samples and windows.",
    )


@pytest.fixture
def is_full(request):
    """Whether the sizes of the published tables were asked for."""
    return request.config.getoption("--benchmark-full")
