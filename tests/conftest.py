"""The option of `make snapshots`; the count of compared token ids, summed over pytest-xdist's workers."""

from typing import Any

import pytest

from tests.tokenizer import tally


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-snapshots", action="store_true", help="rewrite tests/cli/snapshots")


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["token_ids"] = tally.packed()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    tally.add(getattr(node, "workeroutput", {}).get("token_ids"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in tally.summary():
        terminalreporter.write_line(line)
