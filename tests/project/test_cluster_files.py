"""Tests the examples for clusters without a cluster: their syntax and the names in them."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from rbvsr_deploy.commands.run import run

FOLDER = Path(__file__).parents[2] / "docs" / "cluster"
SCRIPT = FOLDER / "rbvsr.sbatch"


def test_the_slurm_script_is_valid() -> None:
    """Bash parses it, and its command has options that exist."""
    done = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    text = SCRIPT.read_text(encoding="utf-8")
    assert {"--nodes", "--gpus-per-node"} <= set(re.findall(r"^#SBATCH (--[\w-]+)", text, re.M))
    (command,) = re.findall(r"rbvsr-run (.*)$", text, re.M)
    assert run.make_context("rbvsr-run", shlex.split(command)).params["cluster"] == "auto"


def test_a_wrong_option_in_the_script_would_be_found() -> None:
    with pytest.raises(click.NoSuchOption):
        run.make_context("rbvsr-run", ["film", "--clusters", "auto"])


def test_the_manifest_for_kuberay_is_valid() -> None:
    """It parses; head and workers have the volume and the image that the page asks for."""
    yaml = pytest.importorskip("yaml")
    manifest: dict[str, Any] = yaml.safe_load((FOLDER / "raycluster.yaml").read_text("utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    (workers,) = manifest["spec"]["workerGroupSpecs"]
    pods = [manifest["spec"]["headGroupSpec"]["template"], workers["template"]]
    containers = [container for pod in pods for container in pod["spec"]["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for pod in pods:
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        mounts = {m["name"] for c in pod["spec"]["containers"] for m in c["volumeMounts"]}
        assert mounts == volumes == {"films"}
    assert containers[1]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert all(
        isinstance(v, str) for v in manifest["spec"]["headGroupSpec"]["rayStartParams"].values()
    )
