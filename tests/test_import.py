"""Importing the package is quick, loads nothing heavy and leaves nothing after."""

import subprocess
import sys

import pytest


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", ["diffusiongemma", "diffusiongemma.cli.main"])
def test_import_loads_no_torch(module: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'matplotlib', 'tokenizers', 'huggingface_hub', 'reasoning_gym'}"
    assert run(f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))").strip() == "[]"


def test_public_names_exist() -> None:
    code = (
        "import diffusiongemma as d; print(all(getattr(d, name) is not None for name in d.__all__), sorted(d.__all__) == d.__all__)"
    )
    assert run(code).split() == ["True", "True"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    import diffusiongemma

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = diffusiongemma.Nothing
