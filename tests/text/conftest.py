"""The tokenizer of the native markup."""

import pytest

from diffusiongemma.text.tokenizer import Tokenizer
from tests.native import native_tokenizer


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return native_tokenizer(tmp_path_factory.mktemp("native"))
