"""Fixtures that every room's tests share."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from diffusiongemma.text.tokenizer import Tokenizer
from tests.tiny import letters

# One thread: the matrices are so small that a second one only waits, and the order of sums never changes.
torch.set_num_threads(1)
# A busy machine must not fail a test, and a failure must come back on the next run.
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    """A tokenizer whose 64 tokens are single characters; it has no chat template."""
    return letters(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _quiet_reference() -> None:
    """Progress bars and warnings of the oracle say nothing about us."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
