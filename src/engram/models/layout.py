"""The names of a stage's files, and of the one task that is none."""

ADAPTER = "adapter_model.safetensors"
ADAPTER_SETTINGS = "adapter_config.json"
WHOLE = "model*.safetensors*"  # the shards of whole weights, and their index
HEAD = "head.safetensors"
STATE = "method.safetensors"
MEMORY = "memory.jsonl"
SCORES = "scores.json"
CARD = "README.md"

GENERAL = "(general)"  # the general rows, among the old tasks
