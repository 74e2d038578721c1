"""`push` uploads a stage to the hub."""

import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from perdure.errors import PerdureError, one_line
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import check_kept, stage_entry
from perdure.models.base import kind_of, load_config_and_tokenizer
from perdure.models.layout import CARD
from perdure.models.pins import check_pin
from perdure.verbs.card import facts_of, model_card
from perdure.verbs.export import export
from perdure.verbs.shareable import copy_shareable


# Errors of the HTTP library below the hub's client, of the system, and of the upload of blocks.
FAILURES: tuple[type[Exception], ...] = (
    *HfHubHTTPError.__bases__,  # type: ignore[assignment]
    RuntimeError,
    ValueError,
)


# The files of a stage, of whatever kind: what an earlier push left of them would be loaded as well.
PUSHED = [
    *("adapter_*", "model*.safetensors*", "head.safetensors", "config.json"),
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "spiece.model", "chat_template*", "additional_chat_templates/*"),
]


def push(path: str | Path, repository: str, stage: int | None, merged: bool, private: bool) -> str:
    """Upload a stage and return the repository's address. See `perdure.api.push`."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise PerdureError(
            f"{repository!r}: not a repository's name ({one_line(error)})"
        ) from error
    if "/" not in repository:
        raise PerdureError(f"{repository!r}: the owner is missing; write OWNER/NAME")
    lineage = Lineage(path)
    entry = stage_entry(lineage, stage)
    if entry is None:
        raise PerdureError(f"{path}: stage 0 is the base; learn a task before you push")
    check_kept(lineage, entry)
    check_pin(lineage.pin)
    with tempfile.TemporaryDirectory() as folder:
        upload = Path(folder) / "stage"
        settings, tokenizer = load_config_and_tokenizer(
            lineage.config.base, lineage.pin.get("revision")
        )
        if merged:
            export(path, upload, stage=entry["stage"], dtype=None)
        else:
            copy_shareable(lineage, entry, tokenizer, upload)
        kind = "merged" if merged else entry["kind"]
        base_kind = kind_of(settings, lineage.config.base)
        facts = facts_of(lineage, entry, tokenizer)
        card = model_card(base_kind, lineage.pin, entry, kind=kind, place=repository, facts=facts)
        (upload / CARD).write_text(card, encoding="utf-8")
        try:
            hub = HfApi()
            # None means the owner's default, which may be private.
            hub.create_repo(repository, private=private or None, exist_ok=True)
            hub.upload_folder(
                repo_id=repository,
                folder_path=upload,
                delete_patterns=PUSHED,
                commit_message=f"Stage {entry['stage']}: {entry['task']['name']}",
            )
        except FAILURES as error:
            raise PerdureError(
                f"{repository}: the upload failed ({one_line(error)}); "
                "log in with `hf auth login`, and check the name and the connection"
            ) from error
    return f"{hub.endpoint}/{repository}"
