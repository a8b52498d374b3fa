"""Every example in docs/api.md runs as it stands."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.running import Running

TEXT = (Path(__file__).parent.parent.parent / "docs" / "api.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.S)


def test_python(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block.replace(ADDRESS, server.url), "docs/api.md", "exec"), names)
        assert capsys.readouterr().out.strip(), block


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(server: Running) -> None:
    result = blocks("bash")
    assert len(result) == 4
    for block in result:
        ended = subprocess.run(block.replace(ADDRESS, server.url), shell=True, capture_output=True, text=True, check=True)
        if '"stream": true' in block:
            assert "event: draft" in ended.stdout
            assert ended.stdout.endswith("data: [DONE]\n\n")
        else:
            assert json.loads(ended.stdout)["choices"], ended.stdout


def test_every_field_is_described() -> None:
    from diffusiongemma.server import protocol

    for body in (protocol.ChatRequest, protocol.CompletionRequest, protocol.EditRequest, protocol.DecisionsRequest):
        for name in body.model_fields:
            assert f"`{name}`" in TEXT or f"`{name}:" in TEXT or f"`{name}." in TEXT, name
