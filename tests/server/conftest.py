"""One model and one server for all tests of this room."""

from collections.abc import Iterator

import openai
import pytest

from diffusiongemma.generation import DiffusionGemmaModel
from tests.server.running import Running, running


@pytest.fixture(scope="session")
def nano() -> DiffusionGemmaModel:
    return DiffusionGemmaModel.from_pretrained("nano")


@pytest.fixture(scope="session")
def server(nano: DiffusionGemmaModel) -> Iterator[Running]:
    with running(nano) as started:
        yield started


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made
