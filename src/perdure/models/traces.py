"""Checks that a model in memory equals a freshly loaded one, and copies that share its weights.

A base stays in memory from one stage to the next. This gives the same bytes as loading it again
only if learning has changed nothing except the trained weights: no hook, no setting, and no bit of
a frozen weight or a buffer. A `Trainer` does change some settings (it aligns the special tokens of
config and tokenizer), so the settings are restored first.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perdure.models.classifier import Classifier


# Attributes of a module that are compared or stored separately.
ELSEWHERE = ("_parameters", "_buffers", "_modules")
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
CHUNK = 2**22  # how many numbers are summed at once, so that no large copy is made


class AsLoaded:
    """The state of a model when it was loaded.

    `restore` restores the settings and the modules' attributes, and checks everything else except
    the trained weights. `begin` restores the trained weights, if they were kept.
    """

    def __init__(self, model: nn.Module, keep_trained: bool):
        self.attributes = {
            name: dict(_attributes(module)) for name, module in model.named_modules()
        }
        self.settings = dict(_settings(model))
        self.trained = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and keep_trained
        }
        self.traces = traces(model)

    def restore(self, model: nn.Module) -> bool:
        """Restore settings and attributes; return whether everything else is unchanged."""
        model.zero_grad()
        for name, module in model.named_modules():
            before = self.attributes.get(name, {})
            for key in [key for key, _ in _attributes(module) if key not in before]:
                delattr(module, key)
            vars(module).update(before)
        for owner, values in self.settings.values():
            vars(owner).clear()
            vars(owner).update(_copied(values))
        return traces(model) == self.traces

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        """Restore the trained weights, and remove all rows of an encoder's head."""
        if isinstance(model, Classifier):
            model.set_head(model.weight.detach()[:0], model.bias.detach()[:0], [])
        for name, parameter in model.named_parameters():
            if name in self.trained and parameter.numel():
                parameter.copy_(self.trained[name])


@torch.no_grad()
def traces(model: nn.Module) -> dict[str, Any]:
    """Return all properties of a model except the values of its trained weights, by part.

    A trained weight is described by its shape and type, and every other tensor also by a checksum
    of its bits. The rows of an encoder's head are not included, because each stage stores them.
    """
    properties: dict[str, Any] = {}
    texts: dict[int, str] = {}
    for name, module in model.named_modules():
        head = isinstance(module, Classifier)
        attributes = {key: _described(value, texts) for key, value in _attributes(module)}
        hooks = {key: len(value) for key, value in vars(module).items() if "hooks" in key and value}
        properties[name] = (type(module), attributes, hooks)
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if not head:
                properties[f"{name}.{key}"] = (
                    parameter.dtype,
                    parameter.device,
                    parameter.shape,
                    "trained" if parameter.requires_grad else checksum(parameter),
                    bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks),
                )
        for key, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            properties[f"{name}.{key}"] = (
                buffer.dtype,
                buffer.device,
                buffer.shape,
                checksum(buffer),
            )
    return properties


def checksum(tensor: Tensor) -> int | None:
    """Return the sum of a tensor's bits, read as integers, or None if they cannot be read."""
    if tensor.is_meta or tensor.is_complex():
        return None
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().flatten().view(whole[tensor.element_size()])
    return sum(int(chunk.sum(dtype=torch.int64)) for chunk in bits.split(CHUNK))


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield a module's attributes except its weights, submodules and hooks."""
    for key, value in vars(module).items():
        stored = isinstance(module, Classifier) and key == "labels"
        if key not in ELSEWHERE and "hooks" not in key and not stored:
            yield key, value


def _settings(model: nn.Module) -> Iterator[tuple[int, tuple[Any, dict[str, Any]]]]:
    """Yield the objects with settings (of the model, of PEFT, of generation) and copies, by id."""
    waiting = [value for _, module in model.named_modules() for _, value in _attributes(module)]
    visited: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
        elif _holds_settings(value) and id(value) not in visited:
            visited.add(id(value))
            waiting += vars(value).values()
            yield id(value), (value, _copied(vars(value)))


def _holds_settings(value: Any) -> bool:
    return hasattr(value, "to_dict") and hasattr(value, "__dict__") and not isinstance(value, type)


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """Copy the values, with their lists and mappings; nested settings objects are not copied."""
    return {
        key: copy.deepcopy(value) if isinstance(value, list | dict | set) else value
        for key, value in values.items()
    }


def _described(value: Any, texts: dict[int, str]) -> Any:
    """Return an attribute in a form that can be compared; `texts` caches settings by their id."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        return value.dtype, value.shape, checksum(value)
    if isinstance(value, Mapping):
        return {str(k): _described(v, texts) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_described(v, texts) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if _holds_settings(value):
        if id(value) not in texts:
            texts[id(value)] = str(value.to_dict())
        return texts[id(value)]
    return getattr(value, "__qualname__", type(value).__qualname__)


def sharing_copy(model: Any, trained: bool = True) -> Any | None:
    """Copy a model with its trained weights; the copy shares the frozen weights.

    The copy can be used and changed without an effect on the model, as long as no shared weight is
    changed in place. Without `trained`, all weights are shared. Returns None if the model cannot be
    copied, or has quantised weights, which are more than a tensor of numbers.
    """
    if any(type(parameter) is not nn.Parameter for parameter in model.parameters()):
        return None
    # deepcopy takes the values of this mapping instead of copying the objects with these ids.
    shared: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad)
        for p in model.parameters()
        if not (trained and p.requires_grad)
    }
    try:
        return copy.deepcopy(model, shared)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return None
