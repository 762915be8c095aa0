"""Tests the one base class for closing."""

from __future__ import annotations

import ast

import pytest

from rbvsr_deploy.closing import Closing
from tests.project.test_layers import FILES


class Resource(Closing):
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_leaving_the_block_closes() -> None:
    """Also after an error, which is passed on."""
    with Resource() as resource:
        assert resource.closed == 0
    assert resource.closed == 1
    with pytest.raises(ValueError, match="inside"), resource:
        raise ValueError("inside")
    assert resource.closed == 2


@pytest.mark.slow
def test_no_other_class_enters_and_exits_by_itself() -> None:
    """Threads do, as they start on entering and need to know about errors on leaving."""
    found = {
        name
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "__exit__"
    }
    assert found == {"rbvsr_deploy.closing", "rbvsr_deploy.jobs.threads"}
