"""What every test runs with."""

import gc


def pytest_collection_finish():
    """Leave what is imported and collected by now out of every later look for garbage."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()
