"""Models as lm-eval asks them. They remember their responses, so that none is computed twice."""

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from perdure.measure.guard.subject import Subject
from perdure.seeds import digest


BATCH_SIZE = 8  # requests


class RespondingModel(LM):
    """Responds to lm-eval's requests; `respond` computes those responses that are not known.

    Args:
        tokenizer: the tokenizer, with the chat template.
        bf16: whether the model computes in bf16, on which its responses depend.
        known: responses that are known, by the keys of their requests.

    Attributes:
        responses: the responses to all requests, by their keys, as plain JSON.
    """

    def __init__(self, tokenizer: Any, bf16: bool = False, known: Mapping[str, Any] | None = None):
        super().__init__()
        self.tokenizer = copy.deepcopy(tokenizer)  # lm-eval changes its padding
        self.chat_template_args: dict[str, Any] = {}
        self.bf16 = bf16
        self.known = known or {}
        self.responses: dict[str, Any] = {}

    apply_chat_template: Any = HFLM.apply_chat_template

    @property
    def tokenizer_name(self) -> str:
        return ""  # a part of the name of lm-eval's cache, which is not used

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        responses = self._responses("loglikelihood", requests)
        return [(likelihood, is_greedy) for likelihood, is_greedy in responses]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
        return self._responses("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Any]) -> list[str]:
        return self._responses("generate_until", requests)

    @abstractmethod
    def respond(self, kind: str, requests: list[Any]) -> list[Any]:
        """Return the responses to requests of one kind, which is the name of a method of `LM`."""

    def _responses(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        keys = numbered([digest(kind, request.args, self.bf16) for request in requests])
        unknown = {
            key: request
            for key, request in zip(keys, requests, strict=True)
            if key not in self.known
        }
        computed = self.respond(kind, list(unknown.values())) if unknown else []
        responses = {**self.known, **dict(zip(unknown, computed, strict=True))}
        self.responses |= {key: responses[key] for key in keys}
        return [responses[key] for key in keys]


class AskedModel(RespondingModel):
    """Asks a network, as lm-eval does itself. It must be made and used in the model's context."""

    def __init__(self, subject: Subject, known: Mapping[str, Any] | None = None):
        self.base = subject.base
        device = next(self.base.model.parameters()).device.type
        bf16 = torch.is_autocast_enabled(device)
        super().__init__(self.base.tokenizer, bf16=bf16, known=known)

    def respond(self, kind: str, requests: list[Any]) -> list[Any]:
        is_padded = self.base.padding.left == self.base.padding.right == "any"
        asked_by_lm_eval: Any = HFLM
        with _kept_as_it_is(self.base.network):
            model = asked_by_lm_eval(
                pretrained=self.base.network,
                tokenizer=self.tokenizer,
                backend="causal" if self.base.kind == "causal" else "seq2seq",
                max_length=self.base.limits.positions,
                batch_size=BATCH_SIZE if is_padded else 1,
                # It turns off an autocast around it, and has its own.
                mixed_precision_dtype=torch.bfloat16 if self.bf16 else None,
                trust_remote_code=False,
            )
        return getattr(model, kind)(requests)


class TrialModel(RespondingModel):
    """Responds without a network, to find out what the tasks ask and which metrics they have.

    Attributes:
        requests: the requests that were made.
    """

    RESPONSES: Mapping[str, Any] = {
        "loglikelihood": (-1.0, False),
        "loglikelihood_rolling": -1.0,
        "generate_until": "a",
    }

    def __init__(self, tokenizer: Any):
        super().__init__(tokenizer)
        self.requests: list[Any] = []

    def respond(self, kind: str, requests: list[Any]) -> list[Any]:
        self.requests += requests
        return [self.RESPONSES[kind]] * len(requests)


def numbered(hashes: Sequence[str]) -> list[str]:
    """Return short keys for hashes; equal hashes get different keys, by their number in order."""
    times: Counter[str] = Counter()
    keys = []
    for value in hashes:
        times[value] += 1
        keys.append(value[:16] if times[value] == 1 else f"{value[:16]}-{times[value]}")
    return keys


@contextmanager
def _kept_as_it_is(network: Any) -> Iterator[None]:
    """Keep lm-eval from tying weights, which it does to every network that it is given."""
    network.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del network.tie_weights
