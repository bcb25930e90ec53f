# SPDX-License-Identifier: Apache-2.0
"""In CI a skipped test is a failed one, unless the machine itself cannot do what it needs.

Such a reason begins with "not on this kernel": CI runs as root and installs every tool, so nothing else may be missing.
"""

import os
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("CI") and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith("not on this kernel"):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: skipped in CI: {reason}"
    return report
