"""Tests commands with closed or limited standard streams, and under signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from rbvsr_deploy.pretrained import DEFAULT_BUNDLE

INFO = "from rbvsr_deploy.commands.info import info; info()"

# Tests may run in the background of a shell, where signals are ignored: not in this process.
LISTEN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
)

PROGRAM = """
import os, sys, time, weakref
import click
from rbvsr_deploy.commands._common import Command, command_errors, report

@click.command(cls=Command)
@click.argument("path")
def command(path):
    with command_errors():
        {body}

command()
"""


def closing(*descriptors: int) -> Callable[[], None]:
    """Return a function that closes descriptors in a child process."""

    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return close


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize(("bundle", "code"), [(DEFAULT_BUNDLE, 0), (Path("missing.plan"), 1)])
def test_closed_streams_are_silent(closed: tuple[int, ...], bundle: Path, code: int) -> None:
    """No traceback on the streams that are left, and the exit code is the same."""
    done = subprocess.run(
        [sys.executable, "-c", INFO, str(bundle)],
        capture_output=True,
        text=True,
        preexec_fn=closing(*closed),
    )
    assert done.returncode == code
    assert bool(done.stdout) == (1 not in closed and code == 0)
    assert bool(done.stderr) == (2 not in closed and code == 1)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stream", [1, 2])
def test_files_do_not_take_the_place_of_closed_streams(stream: int, tmp_path: Path) -> None:
    """Output of a C library on a closed stream must not end up in an output file."""
    path = tmp_path / "output"
    body = f"file = open(path, 'wb', buffering=0); os.write({stream}, b'noise'); file.write(b'ok')"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body), str(path)], preexec_fn=closing(stream)
    )
    assert done.returncode == 0
    assert path.read_bytes() == b"ok"


def test_video_does_not_go_to_a_closed_output() -> None:
    """``-o -`` with standard output closed is refused before the work."""
    program = "from rbvsr_deploy.commands.run import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", program, "a.mp4", "-o", "-"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=closing(1),
    )
    assert done.returncode == 2
    assert "Error: standard output is closed" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_results_that_cannot_be_printed() -> None:
    """One sentence, exit code 1, and nothing more when the process ends."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", INFO, str(DEFAULT_BUNDLE)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the work is done, but its result cannot be printed")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_reports_that_cannot_be_printed_do_not_stop_the_work(tmp_path: Path) -> None:
    """Progress on a full disk or a closed terminal is lost, and the output is written."""
    body = "report('a'); report('b'); open(path, 'w').write('ok')"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(body=body), str(tmp_path / "output")], stderr=full
        )
    assert done.returncode == 0
    assert (tmp_path / "output").read_text() == "ok"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """As ``rbvsr-info model.plan | true``: no traceback."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", INFO, str(DEFAULT_BUNDLE)],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert done.returncode == 1
    assert done.stderr.count("\n") <= 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("name", ["映画.plan".encode(), b"\xff\xfe.plan"])
def test_names_that_the_console_cannot_encode(name: bytes, encoding: str, tmp_path: Path) -> None:
    """The result is printed, with something in place of the characters."""
    path = os.path.join(os.fsencode(tmp_path), name)
    shutil.copy(os.fsencode(DEFAULT_BUNDLE), path)
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", INFO, path], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b".plan, 0.9 MB" in done.stdout


def signalled(
    program: str, *arguments: object, number: int, delay: float = 0, ignored: bool = False
) -> tuple[int, str, str]:
    """Run a program and send it a signal some time after its first line.

    Returns:
        The exit code, and what it printed after that line on standard output and standard error.
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: signal.signal(number, signal.SIG_IGN)) if ignored else None,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(delay)
            process.send_signal(number)
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, output, errors


@pytest.mark.parametrize("delay", [0, 0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_while_a_command_starts(delay: float, sample: Path, tmp_path: Path) -> None:
    """130 without a traceback, while modules are imported, options are parsed or an engine opens.

    The time before the first of our modules is Python's own.
    """
    program = (
        f"{LISTEN}import rbvsr_deploy.commands; print('ready', flush=True)\n"
        "from rbvsr_deploy.commands.run import run; run()"
    )
    arguments = (sample, "-o", tmp_path / "out.mp4", "--device", "cpu")
    code, _, errors = signalled(program, *arguments, number=signal.SIGINT, delay=delay)
    assert code == 130, errors
    assert "Traceback" not in errors
    assert "rror" not in errors
    assert list(tmp_path.iterdir()) == []


WAITS = "print('ready', flush=True); time.sleep(60)"
TURNS_THE_EXIT_INTO_AN_ERROR = """try:
            print('ready', flush=True); time.sleep(60)
        except BaseException:
            raise ImportError('a library') from None"""
DISCARDS_THE_EXIT = """try:
            print('ready', flush=True); time.sleep(60)
        except BaseException:
            pass"""
DISCARDS_THE_EXIT_AND_CONTINUES = f"""{DISCARDS_THE_EXIT}
        report('now'); os._exit(0)"""
IGNORES_THE_EXIT_IN_A_CALLBACK = """class Callback:
            def __del__(self): print('ready', flush=True); time.sleep(60)
        Callback()
        time.sleep(60)"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("SIGINT", WAITS),
        ("SIGTERM", WAITS),
        ("SIGHUP", WAITS),
        ("SIGINT", TURNS_THE_EXIT_INTO_AN_ERROR),
        ("SIGINT", DISCARDS_THE_EXIT),
        ("SIGTERM", DISCARDS_THE_EXIT_AND_CONTINUES),
        ("SIGINT", IGNORES_THE_EXIT_IN_A_CALLBACK),
        ("SIGTERM", IGNORES_THE_EXIT_IN_A_CALLBACK),
    ],
)
def test_signals_end_a_command(name: str, body: str) -> None:
    """The exit code is 128 plus the signal, even if a library catches or ignores the exit."""
    number = getattr(signal, name)
    program = LISTEN + PROGRAM.format(body=body)
    code, output, errors = signalled(program, "path", number=number)
    assert (code, output) == (128 + number, "")
    assert errors == "Interrupted; run the same command again to continue.\n"


IN_A_LIBRARY = """import hashlib
        from rbvsr_deploy import signals
        signals._PATIENCE = 1.2
        print('ready', flush=True)
        hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"""
CLEANS_UP = """from rbvsr_deploy import signals
        signals._PATIENCE = 0.1
        try:
            print('ready', flush=True); time.sleep(60)
        finally:
            time.sleep(1.5); print('cleaned', flush=True)"""
HAS_A_CHILD = """import warnings
        from rbvsr_deploy import signals
        warnings.simplefilter('ignore')  # Python 3.12 and later warn of forks beside threads
        signals._PATIENCE = 0.1
        if (child := os.fork()) == 0:
            time.sleep(60)
        time.sleep(0.2)
        os.kill(child, 15)
        os.waitpid(child, 0)
        time.sleep(1.5)
        print('ready', flush=True); time.sleep(60)"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("SIGINT", IN_A_LIBRARY, ""),
        ("SIGTERM", IN_A_LIBRARY, ""),
        ("SIGINT", CLEANS_UP, "cleaned\n"),
        ("SIGTERM", HAS_A_CHILD, ""),
    ],
)
def test_a_library_that_does_not_return(name: str, body: str, expected: str) -> None:
    """The command ends without it, but waits for its own work, and is not taken for a child."""
    number = getattr(signal, name)
    code, output, errors = signalled(LISTEN + PROGRAM.format(body=body), "path", number=number)
    assert (code, output) == (128 + number, expected)
    lines = 2 if body == HAS_A_CHILD else 1  # the child prints it, too
    assert errors == "Interrupted; run the same command again to continue.\n" * lines


ENDLESS = """from pathlib import Path
        import numpy as np
        from rbvsr_deploy.bundle import bundle_in_memory, open_bundle
        from rbvsr_deploy.engines.onnx_runtime import OnnxRuntimeEngine
        bundle = open_bundle(Path({bundle!r}))
        graphs = bundle.graphs() | {{'ingest': Path(path).read_bytes()}}
        engine = OnnxRuntimeEngine(bundle_in_memory('e', bundle.manifest, graphs), device='cpu')
        print('ready', flush=True)
        engine.run('ingest', image=np.zeros((1, 4, 4, 3), np.uint8))"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_graph_that_does_not_end(name: str, tmp_path: Path) -> None:
    """ONNX Runtime ends it between two nodes. The bundle's check would have refused the graph."""
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["again"], value=yes),
            helper.make_node("Neg", ["x"], ["y"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])
    frame = helper.make_tensor_value_info("frame", TensorProto.FLOAT, ["N", 3, "H", "W"])
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["yes"], value=yes),
            helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["turned"], ["begin"], to=TensorProto.FLOAT),
            helper.make_node("Loop", ["", "yes", "begin"], ["frame"], body=body),
        ],
        "ingest",
        [image],
        [frame],
    )
    opset = [helper.make_opsetid("", 18)]
    path = tmp_path / "endless.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    number = getattr(signal, name)
    program = LISTEN + PROGRAM.format(body=ENDLESS.format(bundle=str(DEFAULT_BUNDLE)))
    code, output, errors = signalled(program, path, number=number, delay=0.3)
    assert (code, output) == (128 + number, "")
    assert errors == "Interrupted; run the same command again to continue.\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ignored_signals_stay_ignored(name: str) -> None:
    """As under nohup, or Ctrl-C in the background of a shell."""
    number = getattr(signal, name)
    program = PROGRAM.format(
        body="print('ready', flush=True); time.sleep(0.5); print('done', flush=True)"
    )
    assert signalled(program, "path", number=number, ignored=True) == (0, "done\n", "")
