"""A base by name or folder: causal LM, encoder-decoder, or encoder with a growing head."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_config, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from engram.config import ADAPTER
from engram.errors import EngramError, nearest
from engram.seeds import derive, forked


Kind = Literal["causal", "seq2seq", "encoder"]
DEFAULT = Path(__file__).parent / "default_model"
AUTO = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "encoder": AutoModel}
TASK_TYPE = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}


@dataclass
class Base:
    """A model ready to learn, and what is needed to feed it."""

    name: str
    kind: Kind
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase

    @property
    def peft(self) -> PeftModel:
        """The part of the model that carries the adapter."""
        part = self.model.backbone if isinstance(self.model, Classifier) else self.model
        assert isinstance(part, PeftModel)
        return part

    @property
    def labels(self) -> list[str] | None:
        return self.model.labels if isinstance(self.model, Classifier) else None


class Classifier(nn.Module):
    """An encoder with a linear head, one row a label, on the masked mean of the last hidden states.

    logits = mean_t(h_t) W^T + b over the positions t of the attention mask; h [batch, time, width],
    W [labels, width]. `grow` appends rows for new labels and keeps the old ones bitwise.
    """

    def __init__(self, backbone: nn.Module, width: int):
        super().__init__()
        self.backbone = backbone
        self.labels: list[str] = []
        self.weight = nn.Parameter(torch.zeros(0, width))
        self.bias = nn.Parameter(torch.zeros(0))

    def grow(self, labels: tuple[str, ...], seed: int) -> None:
        """Append a row for each label that is not known: weights N(0, 0.02^2), biases zero."""
        new = [label for label in labels if label not in self.labels]
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(len(new), self.weight.shape[1], generator=generator) * 0.02
        self.set_head(
            torch.cat([self.weight.detach(), rows.to(self.weight.device)]),
            torch.cat([self.bias.detach(), self.bias.new_zeros(len(new))]),
            self.labels + new,
        )

    def set_head(self, weight: Tensor, bias: Tensor, labels: list[str]) -> None:
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.labels = list(labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        outputs = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        hidden, mask = outputs.last_hidden_state.float(), attention_mask.unsqueeze(-1).float()
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        with torch.autocast(mean.device.type, enabled=False):
            logits = nn.functional.linear(mean, self.weight, self.bias)
        return SequenceClassifierOutput(logits=logits)  # type: ignore[arg-type]


def locate(name: str) -> str:
    """Where transformers finds the base: the embedded model for "default", else the name itself."""
    return str(DEFAULT) if name == "default" else name


def kind_of(config: Any, name: str) -> Kind:
    """BERT is in both mappings; a masked-LM family that is not a decoder is an encoder."""
    if config.is_encoder_decoder:
        return "seq2seq"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder"
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise EngramError(
        f"base {name!r}: model type {config.model_type!r} is neither a causal, an "
        "encoder-decoder nor an encoder language model; choose a text model"
    )


def load_base(name: str, adapter: dict[str, Any], seed: int) -> Base:
    """The base with a fresh adapter on it (an encoder also gets an empty head).

    Raises:
        EngramError: no such base, or an adapter setting that PEFT does not take.
    """
    config, tokenizer = load_config_and_tokenizer(name)
    kind = kind_of(config, name)
    try:
        with forked(derive(seed, "base")):  # weights that the base lacks, such as a pooler's
            model = AUTO[kind].from_pretrained(locate(name), dtype="auto")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EngramError(
            f"base {name!r}: its weights do not load ({_one_line(error)}); give a whole base"
        ) from error
    settings = {"task_type": TASK_TYPE[kind], **adapter}
    if settings.get("peft_type", "LORA") == "LORA":  # GPT-2's Conv1D holds its weights transposed
        transposed = any(isinstance(module, Conv1D) for module in model.modules())
        settings = {**ADAPTER, "fan_in_fan_out": transposed, **settings}
    with forked(derive(seed, "adapter")):
        try:
            wrapped = get_peft_model(model, get_peft_config(check_adapter(settings)))
        except (TypeError, ValueError) as error:
            raise EngramError(
                f"adapter: PEFT refuses these settings: {_one_line(error)}"
            ) from error
    if kind == "encoder":
        wrapped = Classifier(wrapped, config.hidden_size)
    return Base(name, kind, wrapped, tokenizer)


def load_config_and_tokenizer(name: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """What can be read of a base without its weights.

    Raises:
        EngramError: there is no such base.
    """
    try:
        config = AutoConfig.from_pretrained(locate(name))
        return config, AutoTokenizer.from_pretrained(locate(name))
    except (OSError, ValueError) as error:
        raise EngramError(
            f"base {name!r}: no model could be loaded ({_one_line(error)}); give a folder with "
            "config.json, weights and tokenizer, a model name of the hub, or default"
        ) from error


def check_adapter(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` if every key is one of PEFT's for that adapter type."""
    kinds = {str(k.value): v for k, v in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = str(settings["peft_type"]).upper()
    if kind not in kinds:
        raise EngramError(f"adapter: unknown peft_type {kind!r}; {nearest(kind, kinds)}")
    valid = [f.name for f in dataclasses.fields(kinds[kind])]
    for key in settings:
        if key not in valid:
            raise EngramError(f"adapter: {kind} has no setting {key!r}; {nearest(key, valid)}")
    return {**settings, "peft_type": kind}


def pin(name: str) -> dict[str, Any]:
    """What makes the base this base: its commit on the hub, or the sha256 of each of its files."""
    folder = Path(locate(name))
    if not folder.is_dir():
        config, _ = load_config_and_tokenizer(name)
        return {"name": name, "revision": getattr(config, "_commit_hash", None)}
    kept = (".safetensors", ".json", ".txt", ".model", ".jinja")
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in kept)
    return {"name": name, "files": {p.name: file_hash(p) for p in files}}


def file_hash(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _one_line(error: Exception) -> str:
    """The first sentence of a library's message."""
    return " ".join(str(error).split()).split(". ")[0][:200]
