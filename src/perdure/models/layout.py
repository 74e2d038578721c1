"""The names of a stage's files, and the name of the general rows."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_SETTINGS = "adapter_config.json"
WHOLE = "model*.safetensors*"  # the shards of whole weights, and their index
HEAD_WEIGHTS = "head.safetensors"
METHOD_STATE = "method.safetensors"
MERGE_STATE = "merge.safetensors"  # the state of a rule of merging
MEMORY = "memory.jsonl"
SCORES = "scores.json"
PREDICTIONS = "predictions.json.gz"
VERDICT = "verdict.json"
GUARD = "guard.json.gz"
LM_EVAL = "lm_eval.json.gz"
CARD = "README.md"
COMPACTED = (
    WHOLE,
    ADAPTER_WEIGHTS,
    METHOD_STATE,
    MERGE_STATE,
)  # what `perdure compact` deletes of a stage

# What a stage records beside its model.
RECORDS = (METHOD_STATE, MERGE_STATE, MEMORY, SCORES, PREDICTIONS, VERDICT, GUARD, LM_EVAL, CARD)

GENERAL = "(general)"  # the name of the general rows among the names of old tasks
