"""Tests what ``rbvsr_deploy`` itself offers."""

from __future__ import annotations

import ast
import inspect
import types
from pathlib import Path

import pytest

import rbvsr_deploy
from rbvsr_deploy import Upscaler, errors
from rbvsr_deploy.jobs.upscale_file import upscale_file


def test_all_is_exactly_what_can_be_imported() -> None:
    """Every name in ``__all__`` exists and is offered by ``dir``, which offers nothing else."""
    for name in rbvsr_deploy.__all__:
        assert getattr(rbvsr_deploy, name) is not None
    assert sorted(rbvsr_deploy.__all__) == rbvsr_deploy.__all__
    own = {
        name
        for name in dir(rbvsr_deploy)
        if not name.startswith("_")
        and not isinstance(getattr(rbvsr_deploy, name), types.ModuleType)
    }
    assert own - {"annotations", "TYPE_CHECKING", "Any", "import_module"} == set(
        rbvsr_deploy.__all__
    ) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'Downscaler'"):
        rbvsr_deploy.Downscaler  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    """The imports for type checkers name what ``__getattr__`` loads, from the same modules."""
    tree = ast.parse(Path(rbvsr_deploy.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {*seen, "__version__"} == set(rbvsr_deploy.__all__)
    for name, module in seen.items():
        assert rbvsr_deploy._MODULES.get(name, "rbvsr_deploy.errors") == module


def test_all_errors_are_offered() -> None:
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.RbvsrError)
    }
    assert kinds <= set(rbvsr_deploy.__all__)
    assert rbvsr_deploy.MediaError is errors.MediaError


def test_video_spells_out_every_option() -> None:
    """``help(Upscaler.video)`` shows the options of a job with their types: keyword-only, none
    hidden, each described.
    """
    options = inspect.signature(Upscaler.video).parameters
    assert not any(option.kind is option.VAR_KEYWORD for option in options.values())
    keywords = {name for name, option in options.items() if option.kind is option.KEYWORD_ONLY}
    assert {"self", "path", "output"} == set(options) - keywords
    job = set(inspect.signature(upscale_file).parameters)
    assert keywords == job - {"path", "output", "engine", "settings", "size"}
    description = inspect.getdoc(Upscaler.video) or ""
    for name in options.keys() - {"self"}:
        assert f"\n    {name}: " in description
        assert options[name].annotation is not inspect.Parameter.empty
