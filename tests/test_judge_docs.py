"""The code in docs/judge.md runs as it is written."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs" / "judge.md"


def test_the_python_block_runs() -> None:
    [block] = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.S)
    names: dict[str, Any] = {}
    exec(compile(block, str(DOCS), "exec"), names)
    model, prompt = names["model"], names["prompt"]
    assert names["one"].total > names["other"].total
    assert names["best"].confidence >= names["result"].confidence - 1e-6
    assert names["exact"].token_ids == model.generate(prompt, seed=1, mode="causal", temperature=0.0).token_ids
