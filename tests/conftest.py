"""Settings of all tests: property tests that behave the same on a slow and on a fast machine."""

from __future__ import annotations

import importlib.util

from hypothesis import HealthCheck, settings

# Collected only where `./dev peers` has put those libraries; the header of each run says which it is.
HAS_PEERS = importlib.util.find_spec("mmengine") is not None
collect_ignore = [] if HAS_PEERS else ["peers"]

# Same examples in every run: a red run is red again. No deadline, because time is no assertion here.
settings.register_profile("torchinit", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("torchinit")


def pytest_report_header() -> str:
    where = "here" if HAS_PEERS else "not in this run (./dev peers)"
    return f"tests against other libraries (tests/peers): {where}"
