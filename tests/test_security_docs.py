"""Every line of docs/security.md names a test, a file and a bound that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINES = [line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if line.startswith("| ") and "::" in line]


def test_each_budget_has_its_place_and_its_test() -> None:
    assert len(LINES) > 40
    for line in LINES:
        _, work, budget, where, test, _ = line.split("|")
        assert work.strip() and budget.strip()
        (named,) = re.findall(r"`(\S+\.py)::(\w+)`", test)
        assert f"def {named[1]}(" in (ROOT / "tests" / named[0]).read_text(), line
        source = ""
        for kind, name in re.findall(r"`(?:(\S+\.py)|(\w+))`", where):
            source = (ROOT / "src" / "diffusiongemma" / kind).read_text() if kind else source
            assert not name or re.search(rf"(def {name}\b|^\s*{name}\b\s*[:=])", source, re.MULTILINE), line
