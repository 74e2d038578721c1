"""Finds out by trial in which batches a model gives each row the output that it has alone.

A row in a batch is padded. Attention masks padding exactly, but a recurrence or a Fourier transform
may not, and an expert of limited capacity drops tokens when other rows have filled it. Or rows are
packed end to end, without padding; then a row must not see the one before it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from perdure.errors import PerdureError, one_line
from perdure.models.batch import Side, pad_id, padded
from perdure.models.head import activates_adapter
from perdure.models.kinds import Kind
from perdure.models.limits import Limits
from perdure.seeds import forked


# Batches of any rows, of rows of equal length only, or of a single row.
Batches = Literal["any", "equal", "single"]
Outputs = Callable[[list[list[int]]], list[Tensor]]  # the outputs for each text, [tokens, width]
LENGTHS = (3, 12, 7, 5)
# Root mean square of the difference, relative to that of the value. For a model in fp32 it is a few
# 1e-6, in half precision up to a few hundredths.
TOLERANCE, COARSE_TOLERANCE = 1e-4, 0.05


@dataclass(frozen=True)
class Padding:
    """Which batches do not change a model's output.

    Args:
        left: when prompts are padded on the left, as they are when a causal model generates.
        right: when rows are padded on the right, as they are otherwise.
    """

    left: Batches = "any"
    right: Batches = "any"


_KNOWN: dict[tuple[str, str, str], Padding] = {}


def tried_padding(
    network: Any, kind: Kind, tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> Padding:
    """Run a few short texts alone and in batches, and compare the model's outputs.

    This is done once per process for each config, data type and device.

    Raises:
        PerdureError: the model cannot be run at all.
    """
    parameter = next(network.parameters())
    config = network.config.to_json_string(use_diff=False)
    key = (config, str(parameter.dtype), str(parameter.device))
    if key not in _KNOWN:
        _KNOWN[key] = _tried(network, kind, tokenizer, limits)
    return _KNOWN[key]


def can_pack(network: Any, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> bool:
    """Run a few short texts of a causal model alone and packed, and compare the outputs.

    `network` is the model that will be trained, with its adapter.
    """
    if activates_adapter(network):  # it looks for its tokens once in each sequence
        return False
    trial = _Trial(network, "causal", tokenizer, limits)
    try:
        with _evaluating(network):
            return trial.packs()
    except (RuntimeError, ValueError, TypeError, LookupError, NotImplementedError):
        return False  # it takes no positions, for example


def _tried(network: Any, kind: Kind, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> Padding:
    trial = _Trial(network, kind, tokenizer, limits)
    try:
        with _evaluating(network):
            left = trial.batches("left") if kind == "causal" else "any"
            return Padding(left, trial.batches("right"))
    except (RuntimeError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        reason = one_line(error)
        raise PerdureError(
            f"base: a short text cannot be run through it ({type(error).__name__}: {reason}); "
            "fix its config, or choose another base"
        ) from error


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    """Put a model into evaluation mode for a block, without gradients, autocast and new draws."""
    modules = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        device = next(network.parameters()).device.type
        with torch.no_grad(), forked(0), torch.autocast(device, enabled=False):
            yield
    finally:
        for module, training in modules:
            module.training = training


class _Trial:
    """Compares the outputs for texts in a batch with those for each text alone."""

    def __init__(
        self, network: Any, kind: Kind, tokenizer: PreTrainedTokenizerBase, limits: Limits
    ):
        self.network, self.kind = network, kind
        self.device = next(network.parameters()).device
        num_tokens = limits.tokens or len(tokenizer)
        self.tokenizer = tokenizer
        special = set(tokenizer.all_special_ids)
        self.ids = [i for i in range(min(num_tokens, 5000)) if i not in special] or [0]

    def batches(self, side: Side) -> Batches:
        """Return the widest choice of batches with the same outputs as for each text alone."""
        if self._same(self._texts(LENGTHS), side) and not self._positions_depend_on_batch():
            return "any"
        return "equal" if self._same(self._texts([7] * 4), side) else "single"

    def _positions_depend_on_batch(self) -> bool:
        """Return whether positions are encoded differently if the batch has a long text.

        Some rotary embeddings (longrope, dynamic scaling) choose their frequencies by the largest
        position in the batch. These modules are small, so they are tried up to the last position.
        """
        longest = getattr(self.network.config.get_text_config(), "max_position_embeddings", 0) or 0
        for module in self.network.modules():
            if not hasattr(module, "rope_type") or not isinstance(longest, int):
                continue
            first = torch.zeros(1, 1, 1, device=self.device)
            short = torch.arange(4, device=self.device)[None]
            long = torch.cat([short, torch.tensor([[longest - 1]], device=self.device)], dim=1)
            try:
                alone, with_long = module(first, short), module(first, long)
                module(first, short)  # restores the state that the module keeps
            except (TypeError, ValueError, RuntimeError, LookupError, AttributeError):
                continue  # the module needs more than positions; only the texts are compared
            if any(
                not torch.equal(one, other[:, :4])
                for one, other in zip(alone, with_long, strict=True)
            ):
                return True
        return False

    def _texts(self, lengths: Sequence[int]) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        indices = [torch.randint(len(self.ids), (n,), generator=generator) for n in lengths]
        return [[self.ids[i] for i in text.tolist()] for text in indices]

    def packs(self) -> bool:
        """Return whether texts that are packed end to end have the same outputs as alone.

        Together they are longer than a mask that the model keeps, as GPT-Neo does for a text of the
        greatest length.
        """
        sides = [mask.shape[-1] for mask in self.network.buffers() if _is_square(mask)]
        times = 1 + max(sides, default=0) // sum(LENGTHS)
        texts = self._texts(LENGTHS * times)
        return self._equal(texts, self._packed_outputs, self._token_outputs)

    def _same(self, texts: list[list[int]], side: Side) -> bool:
        outputs = self._next_token_logits if side == "left" else self._token_outputs
        return self._equal(texts, outputs, outputs)

    def _equal(self, texts: list[list[int]], together_by: Outputs, outputs: Outputs) -> bool:
        """Return whether the outputs for texts are about the same together and alone."""
        together = together_by(texts)
        for text, in_batch in zip(texts, together, strict=True):
            alone = outputs([text])[0]
            steps = min(len(alone), len(in_batch))
            difference = _size(alone[:steps].float() - in_batch[:steps].float())
            coarse = alone.dtype not in (torch.float32, torch.float64)
            coarse = coarse or bool(getattr(self.network, "is_quantized", False))
            tolerance = COARSE_TOLERANCE if coarse else TOLERANCE
            if not difference <= tolerance * _size(alone[:steps].float()):
                return False
        return True

    def _next_token_logits(self, texts: list[list[int]]) -> list[Tensor]:
        """Return the logits of the next two tokens for each text, [steps, vocabulary]."""
        ids, mask = self._padded(texts, "left")
        settings = GenerationConfig(
            max_new_tokens=2,
            do_sample=False,
            pad_token_id=pad_id(self.tokenizer),
            eos_token_id=None,
        )
        generated = self.network.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return list(torch.stack(generated.logits, dim=1))

    def _token_outputs(self, texts: list[list[int]]) -> list[Tensor]:
        """Return the logits for each token of each text, or an encoder's hidden states."""
        ids, mask = self._padded(texts, "right")
        more = {"decoder_input_ids": ids} if self.kind == "seq2seq" else {}
        outputs = self.network(input_ids=ids, attention_mask=mask, **more)
        values = outputs.last_hidden_state if self.kind == "encoder" else outputs.logits
        return [row[: len(text)] for row, text in zip(values, texts, strict=True)]

    def _packed_outputs(self, texts: list[list[int]]) -> list[Tensor]:
        """Return the logits for each token of each text; all texts are one sequence."""
        ids = torch.tensor([[i for text in texts for i in text]], device=self.device)
        positions = torch.tensor([[i for text in texts for i in range(len(text))]])
        outputs = self.network(
            input_ids=ids, position_ids=positions.to(self.device), use_cache=False
        )
        return list(outputs.logits[0].split([len(text) for text in texts]))

    def _padded(self, texts: list[list[int]], side: Side) -> tuple[Tensor, Tensor]:
        """Return ids [batch, longest], padded on one side, and their attention mask."""
        ids, mask = padded(texts, self.tokenizer, side)
        return ids.to(self.device), mask.to(self.device)


def _is_square(mask: Tensor) -> bool:
    """Return whether a buffer can be a mask of [..., length, length]."""
    return mask.dtype == torch.bool and mask.dim() >= 2 and mask.shape[-1] == mask.shape[-2]


def _size(values: Tensor) -> float:
    """Return the root mean square."""
    return values.square().mean().sqrt().item()
