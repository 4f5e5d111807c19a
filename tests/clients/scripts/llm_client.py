"""llm: the command, with a model of extra-openai-models.yaml; whole, streamed, with a schema."""

import json
import os
import subprocess
import sys
from pathlib import Path

MODELS = """
- model_id: served
  model_name: {MODEL}
  api_base: {OPENAI_BASE_URL}
  api_key_name: served
  supports_schema: true
"""
user = Path(os.environ["LLM_USER_PATH"])
(user / "extra-openai-models.yaml").write_text(MODELS.format(**os.environ))
(user / "keys.json").write_text(json.dumps({"served": os.environ["OPENAI_API_KEY"]}))


def llm(*words: str) -> str:
    command = [sys.executable, "-m", "llm", "-m", "served", "-o", "temperature", "0", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout.removesuffix("\n")


question, limit = os.environ["QUESTION"], ("-o", "max_tokens", os.environ["NEW"])
schema = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Paris", "Rome", "Berlin"]},
        "is_capital": {"type": "boolean"},
    },
    "required": ["name", "is_capital"],
    "additionalProperties": False,
}
print(
    json.dumps(
        {
            "answers": [llm(*limit, question), llm(*limit, "--no-stream", question)],
            "city": json.loads(llm("--schema", json.dumps(schema), question)),
        }
    )
)
