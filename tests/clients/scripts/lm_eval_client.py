"""lm-eval's local-completions over a task of its own: what it has measured of each choice."""

import json
import os
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
home = Path(os.environ["HOME"])
data = home / "capitals.jsonl"
data.write_text(os.environ["DOCUMENTS"])
(home / "capitals.yaml").write_text(TASK.format(data=data))
url = f"{os.environ['OPENAI_BASE_URL']}/completions"
results = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": os.environ["MODEL"],
        "base_url": url,
        "tokenizer_backend": "remote",
        "auth_token": os.environ["OPENAI_API_KEY"],  # else the tokenizer is asked without a key
        "num_concurrent": 2,
        "max_retries": 1,
    },
    tasks=["capitals"],
    task_manager=TaskManager(include_path=str(home), include_defaults=False),
    log_samples=True,
    bootstrap_iters=0,
)
samples = sorted(results["samples"]["capitals"], key=lambda sample: sample["doc_id"])
print(
    json.dumps(
        {
            "log_likelihoods": [[pair[0] for pair in each["resps"]] for each in samples],
            "accuracy": results["results"]["capitals"]["acc,none"],
        }
    )
)
