"""Clients that people use, against a running server: each asks, streams or calls a tool once, and the answers are checked.

    diffusiongemma serve --port 8000 &
    python -m venv clients && clients/bin/pip install litellm langchain-openai instructor llm
    clients/bin/python tools/clients.py http://127.0.0.1:8000

These packages ask for versions that do not suit this project's own environment; hence the environment of their own.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

QUESTION = "Extract as JSON: name (string), age (integer)\nKalrin is 31."
MESSAGES = [{"role": "user", "content": QUESTION}]


def litellm(url: str) -> str:
    """OpenAI's, Anthropic's and Ollama's protocols by one client."""
    from litellm import completion

    openai = {"model": "openai/nano", "api_base": f"{url}/v1", "api_key": "none"}
    whole = completion(messages=MESSAGES, seed=1, user="me", **openai).choices[0].message.content
    streamed = completion(messages=MESSAGES, seed=1, stream=True, **openai)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole
    for model, base in (("anthropic/nano", url), ("ollama_chat/nano", url)):
        answer = completion(model=model, api_base=base, api_key="none", messages=MESSAGES, max_tokens=60)
        assert answer.choices[0].message.content.startswith("{"), answer
    return str(whole)


def langchain(url: str) -> str:
    """A chat, a stream, a structured answer, a tool."""
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    @tool
    def note(text: str) -> str:
        """Write a note."""
        return text

    model = ChatOpenAI(model="nano", base_url=f"{url}/v1", api_key="none", seed=1, max_retries=0)
    whole = model.invoke(QUESTION).content
    assert "".join(str(part.content) for part in model.stream(QUESTION)) == whole
    assert isinstance(model.with_structured_output(Person).invoke(QUESTION), Person)
    [call] = model.bind_tools([note], tool_choice="note").invoke("Write a note.").tool_calls
    assert call["name"] == "note" and isinstance(call["args"]["text"], str)
    return str(whole)


def instructor(url: str) -> str:
    """A pydantic class, by tool calls and by a schema."""
    import instructor
    import openai
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=mode)
        person = client.chat.completions.create(model="nano", messages=MESSAGES, response_model=Person, max_retries=0)
        assert isinstance(person, Person)
    return repr(person)


def llm(url: str) -> str:
    """The command line of the package ``llm``."""
    with tempfile.TemporaryDirectory() as folder:
        models = [{"model_id": "nano", "model_name": "nano", "api_base": f"{url}/v1", "api_key_name": "none"}]
        (Path(folder) / "extra-openai-models.yaml").write_text(json.dumps(models))
        env = os.environ | {"LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}
        asked = [sys.executable, "-m", "llm", "-m", "nano", "--key", "none"]
        answers = [
            subprocess.run([*asked, *more, QUESTION], env=env, capture_output=True, text=True, check=True).stdout.strip()
            for more in ([], ["--no-stream"])
        ]
        assert all(answer.startswith("{") for answer in answers), answers
        return answers[0]


CLIENTS: dict[str, Callable[[str], str]] = {
    "litellm": litellm, "langchain_openai": langchain, "instructor": instructor, "llm": llm,
}  # fmt: skip


def main() -> int:
    """Run those that are installed; the exit status is the number of those that failed."""
    failed = 0
    for name, run in CLIENTS.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed")
            continue
        try:
            print(f"{name}: {run(sys.argv[1])}")
        except Exception as error:
            failed += 1
            print(f"{name}: FAILED: {type(error).__name__}: {str(error)[:2000]}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
