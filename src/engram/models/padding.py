"""Which batches leave what a model makes of a row as it is, found by trying.

A row in a batch is padded. Attention masks padding exactly, a recurrence or a Fourier transform may
not, and an expert of limited capacity drops tokens when other rows have filled it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from engram.errors import EngramError
from engram.models.kinds import Kind
from engram.models.limits import Limits
from engram.seeds import forked


# Batches of any rows, of rows of equal length, of one row.
Batches = Literal["any", "equal", "single"]
SIDES = Literal["left", "right"]
LENGTHS = (3, 12, 7, 5)
# Root mean square of the difference relative to that of the value: of one fp32 model a few 1e-6,
# in half precision up to a few hundredths.
TOLERANCE, COARSE_TOLERANCE = 1e-4, 0.05


@dataclass(frozen=True)
class Padding:
    """What batches may be when prompts are padded on the left (where a causal model writes on),
    and when rows are padded on the right (everywhere else).
    """

    left: Batches = "any"
    right: Batches = "any"


_KNOWN: dict[tuple[str, str, str], Padding] = {}


def tried_padding(
    network: Any, kind: Kind, tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> Padding:
    """Run a few short texts alone and in batches, and compare what the model makes of them.

    It is done once a process for an architecture and the type of its numbers.

    Raises:
        EngramError: the model cannot be run at all.
    """
    parameter = next(network.parameters())
    written = network.config.to_json_string(use_diff=False)
    key = (written, str(parameter.dtype), str(parameter.device))
    if key not in _KNOWN:
        _KNOWN[key] = _tried(network, kind, tokenizer, limits)
    return _KNOWN[key]


def _tried(network: Any, kind: Kind, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> Padding:
    trial = _Trial(network, kind, tokenizer, limits)
    modules = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        device = next(network.parameters()).device.type
        with torch.no_grad(), forked(0), torch.autocast(device, enabled=False):
            left = trial.batches("left") if kind == "causal" else "any"
            return Padding(left, trial.batches("right"))
    except (RuntimeError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EngramError(
            f"base: a short text cannot be run through it ({type(error).__name__}: {reason}); "
            "mend its config, or choose another base"
        ) from error
    finally:
        for module, training in modules:
            module.training = training


class _Trial:
    def __init__(
        self, network: Any, kind: Kind, tokenizer: PreTrainedTokenizerBase, limits: Limits
    ):
        self.network, self.kind = network, kind
        self.device = next(network.parameters()).device
        known = limits.tokens or len(tokenizer)
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad: int = next(i for i in pads if i is not None)  # type: ignore[assignment]
        special = set(tokenizer.all_special_ids)
        self.ids = [i for i in range(min(known, 5000)) if i not in special] or [0]

    def batches(self, side: SIDES) -> Batches:
        """The widest choice of batches that gives each text what it is given alone."""
        if self._same(self._texts(LENGTHS), side) and not self._turns_with_length():
            return "any"
        return "equal" if self._same(self._texts([7] * 4), side) else "single"

    def _turns_with_length(self) -> bool:
        """Whether positions are encoded otherwise where the batch holds a long text.

        Some rotary embeddings (longrope, dynamic scaling) choose their frequencies by the largest
        position of the batch. These modules are small, so they are tried at the last position.
        """
        longest = getattr(self.network.config.get_text_config(), "max_position_embeddings", 0) or 0
        for module in self.network.modules():
            if not hasattr(module, "rope_type") or not isinstance(longest, int):
                continue
            first = torch.zeros(1, 1, 1, device=self.device)
            short = torch.arange(4, device=self.device)[None]
            long = torch.cat([short, torch.tensor([[longest - 1]], device=self.device)], dim=1)
            try:
                alone, beside = module(first, short), module(first, long)
                module(first, short)  # leaves the module as a short text does
            except (TypeError, ValueError, RuntimeError, LookupError, AttributeError):
                continue  # it wants more than positions; texts alone have to tell
            if any(
                not torch.equal(one, other[:, :4]) for one, other in zip(alone, beside, strict=True)
            ):
                return True
        return False

    def _texts(self, lengths: Sequence[int]) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randint(len(self.ids), (n,), generator=generator) for n in lengths]
        return [[self.ids[i] for i in text.tolist()] for text in drawn]

    def _same(self, texts: list[list[int]], side: SIDES) -> bool:
        made = self._written if side == "left" else self._seen
        together = made(texts)
        for text, in_batch in zip(texts, together, strict=True):
            alone = made([text])[0]
            steps = min(len(alone), len(in_batch))
            difference = _size(alone[:steps].float() - in_batch[:steps].float())
            coarse = alone.dtype not in (torch.float32, torch.float64)
            coarse = coarse or bool(getattr(self.network, "is_quantized", False))
            tolerance = COARSE_TOLERANCE if coarse else TOLERANCE
            if not difference <= tolerance * _size(alone[:steps].float()):
                return False
        return True

    def _written(self, texts: list[list[int]]) -> list[Tensor]:
        """Logits of the next token and, if it is the same, of the one after: [steps, tokens]."""
        ids, mask = self._padded(texts, "left")
        settings = GenerationConfig(
            max_new_tokens=2, do_sample=False, pad_token_id=self.pad, eos_token_id=None
        )
        written = self.network.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return list(torch.stack(written.logits, dim=1))

    def _seen(self, texts: list[list[int]]) -> list[Tensor]:
        """What is made of each token of the text: logits, or an encoder's hidden states."""
        ids, mask = self._padded(texts, "right")
        more = {"decoder_input_ids": ids} if self.kind == "seq2seq" else {}
        outputs = self.network(input_ids=ids, attention_mask=mask, **more)
        seen = outputs.last_hidden_state if self.kind == "encoder" else outputs.logits
        return [row[: len(text)] for row, text in zip(seen, texts, strict=True)]

    def _padded(self, texts: list[list[int]], side: SIDES) -> tuple[Tensor, Tensor]:
        longest = max(len(text) for text in texts)
        ids = torch.full((len(texts), longest), self.pad)
        mask = torch.zeros_like(ids)
        for i, text in enumerate(texts):
            real = slice(longest - len(text), None) if side == "left" else slice(len(text))
            ids[i, real], mask[i, real] = torch.tensor(text), 1
        return ids.to(self.device), mask.to(self.device)


def _size(values: Tensor) -> float:
    """The root mean square."""
    return values.square().mean().sqrt().item()
