"""Tests the command ``rbvsr web`` as far as it needs no Gradio."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from rbvsr_deploy.commands import web as module
from rbvsr_deploy.commands.web import web
from rbvsr_deploy.errors import MissingDependencyError, RbvsrError
from rbvsr_deploy.web.server import listen


def test_without_gradio_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str, *, extra: str, purpose: str) -> None:
        raise MissingDependencyError(package, extra=extra, purpose=purpose)

    monkeypatch.setattr(module, "require", missing)
    result = CliRunner().invoke(web, [])
    assert result.exit_code == 1
    assert result.output == (
        "Error: the web page needs the package 'gradio', which is not installed: "
        "pip install 'rbvsr-deploy[web]'\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [["--port", "70000"], ["--max-upload", "lots"], ["--engine", "/nowhere.plan"], ["clip.mp4"]],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(web, arguments).exit_code == 2


def test_a_port_in_use() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(RbvsrError, match=r"cannot listen on 127\.0\.0\.1, port \d+ \(.* in use"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])


def test_it_listens_on_this_machine_only() -> None:
    """The address is that of the loopback interface unless another is given."""
    (host,) = (option for option in web.params if option.name == "host")
    assert host.default == "127.0.0.1"
    with listen("127.0.0.1", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_models_have_different_names() -> None:
    models = module._models([Path("a/model.plan"), Path("b/model.plan"), Path("c.plan")])
    assert list(models) == ["model", "b/model.plan", "c"]
    assert all(path is not None and path.is_absolute() for path in models.values())
    assert module._models([]) == {"compact (included)": None}
