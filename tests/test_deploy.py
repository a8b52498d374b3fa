"""The examples in deploy/ say what the server takes: options, port, paths, and times that let it drain."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from diffusiongemma.cli.main import app
from diffusiongemma.server.app import create_app
from diffusiongemma.server.settings import Settings
from diffusiongemma.weights.resolve import builtin_names

DEPLOY = Path(__file__).parent.parent / "deploy"


def serve_options() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return {name: one for one in group.commands["serve"].params for name in (*one.opts, *one.secondary_opts)}


def checked(words: list[str]) -> dict[str, str]:
    """The options of a command line of serve, each of which is one; what is no option is a built-in model."""
    options, given, at = serve_options(), dict[str, str](), 0
    while at < len(words):
        if words[at].startswith("--"):
            option = options[words[at]]
            given[words[at]] = "" if option.is_flag else words[at + 1]
            at += 1 if option.is_flag else 2
        else:
            assert words[at] in builtin_names()
            at += 1
    return given


def manifests() -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def test_the_container_runs_the_server() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    entry, last = (json.loads(re.search(rf"^{word} (\[.*\])$", text, re.M)[1]) for word in ("ENTRYPOINT", "CMD"))  # type: ignore[index]
    assert entry[:2] == ["diffusiongemma", "serve"]
    options = checked([*entry[2:], *last])
    assert options["--port"] == re.search(r"^EXPOSE (\d+)$", text, re.M)[1] == "8000"  # type: ignore[index]
    assert "http://127.0.0.1:8000/health" in text and "STOPSIGNAL SIGTERM" in text
    extras = re.search(r'"/src\[(.*)\]"', text)[1].split(",")  # type: ignore[index]
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.M) for extra in extras)


def test_the_unit_gives_it_time_to_drain() -> None:
    text = (DEPLOY / "diffusiongemma.service").read_text()
    words = re.search(r"^ExecStart=(.*)$", text, re.M)[1].split()  # type: ignore[index]
    assert words[0].endswith("/diffusiongemma") and words[1] == "serve"
    options = checked(words[2:])
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)[1]) > float(options["--drain-seconds"])  # type: ignore[index]
    if (verify := shutil.which("systemd-analyze")) is None:
        pytest.skip("there is no systemd-analyze")
    said = subprocess.run([verify, "verify", DEPLOY / "diffusiongemma.service"], capture_output=True, text=True, check=False).stderr
    assert not [line for line in said.splitlines() if "diffusiongemma.service" in line and "is not executable" not in line], said


def test_the_cluster_asks_for_health_and_waits_for_the_end() -> None:
    made = manifests()
    pod = made["Deployment"]["spec"]["template"]["spec"]
    [server] = pod["containers"]
    [port] = server["ports"]
    entry = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.M)[1])  # type: ignore[index]
    options = checked([*entry[2:], *server["args"]])
    assert str(port["containerPort"]) == options["--port"]
    wait = server["lifecycle"]["preStop"]["sleep"]["seconds"] + float(options["--drain-seconds"])
    assert pod["terminationGracePeriodSeconds"] > wait
    paths = {route.path for route in create_app({}, Settings()).routes if hasattr(route, "path")}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["path"] in paths and server[probe]["httpGet"]["port"] == port["name"]
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "PodDisruptionBudget"):
        selector = made[kind]["spec"]["selector"]
        assert selector.get("matchLabels", selector) == labels
    mounts = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert options["--api-key-file"] == f"{mounts['key']}/api_key"
