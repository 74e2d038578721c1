"""What learning leaves on a model beside its trained weights, and a copy that leaves none on it.

A base stays in memory from one stage to the next. That gives the bytes of a base that is loaded
again only if nothing but the trained weights is other than it was: no hook, no changed setting, no
frozen weight or buffer with other bits. A `Trainer` does change some settings (it aligns the
special tokens of config and tokenizer), so these are put back first.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perdure.models.classifier import Classifier


# What stands in the attributes of each module and is looked at, or stored, elsewhere.
ELSEWHERE = ("_parameters", "_buffers", "_modules")
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)
CHUNK = 2**22  # numbers summed at once, so that no large copy is made


class AsLoaded:
    """A model as it was when it was loaded.

    `restore` puts back its settings, its modules' attributes and, if they were kept, its trained
    weights, and says whether the model is what it was in all else.
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
        """Put back what can be put back; whether nothing else is other than it was."""
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
        """Put back the trained weights, and take the rows off an encoder's head."""
        if isinstance(model, Classifier):
            model.set_head(model.weight.detach()[:0], model.bias.detach()[:0], [])
        for name, parameter in model.named_parameters():
            if name in self.trained and parameter.numel():
                parameter.copy_(self.trained[name])


@torch.no_grad()
def traces(model: nn.Module) -> dict[str, Any]:
    """All that tells a model from one with the same trained weights, by the names of its parts.

    Of a weight that is trained there is its shape and type, of every other tensor a checksum of its
    bits. The rows of an encoder's head are left out: they are stored with each stage.
    """
    found: dict[str, Any] = {}
    texts: dict[int, str] = {}
    for name, module in model.named_modules():
        head = isinstance(module, Classifier)
        attributes = {key: _described(value, texts) for key, value in _attributes(module)}
        hooks = {key: len(value) for key, value in vars(module).items() if "hooks" in key and value}
        found[name] = (type(module), attributes, hooks)
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if not head:
                bits = "trained" if parameter.requires_grad else checksum(parameter)
                heard = bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)
                place = (parameter.dtype, parameter.device, parameter.shape)
                found[f"{name}.{key}"] = (*place, bits, heard)
        for key, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            found[f"{name}.{key}"] = (buffer.dtype, buffer.device, buffer.shape, checksum(buffer))
    return found


def checksum(tensor: Tensor) -> int | None:
    """The sum of a tensor's bits, read as whole numbers; None where there are none to read."""
    if tensor.is_meta or tensor.is_complex():
        return None
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().flatten().view(whole[tensor.element_size()])
    return sum(int(chunk.sum(dtype=torch.int64)) for chunk in bits.split(CHUNK))


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module holds beside its weights, its parts and its hooks."""
    for key, value in vars(module).items():
        stored = isinstance(module, Classifier) and key == "labels"
        if key not in ELSEWHERE and "hooks" not in key and not stored:
            yield key, value


def _settings(model: nn.Module) -> Iterator[tuple[int, tuple[Any, dict[str, Any]]]]:
    """The objects that hold a model's settings (of the model, of PEFT, of generation), by id."""
    waiting = [value for _, module in model.named_modules() for _, value in _attributes(module)]
    known: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += value.values()
        elif _holds_settings(value) and id(value) not in known:
            known.add(id(value))
            waiting += vars(value).values()
            yield id(value), (value, _copied(vars(value)))


def _holds_settings(value: Any) -> bool:
    return hasattr(value, "to_dict") and hasattr(value, "__dict__") and not isinstance(value, type)


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """Settings, of which lists and mappings are copied, and settings inside settings are not."""
    return {
        key: copy.deepcopy(value) if isinstance(value, list | dict | set) else value
        for key, value in values.items()
    }


def _described(value: Any, texts: dict[int, str]) -> Any:
    """An attribute of a module as what can be compared; `texts` are the settings seen before."""
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
    """A copy of a model that shares its frozen weights and has trained ones of its own.

    What is done to the copy leaves no trace on the model, as long as no shared weight is changed in
    place. Without `trained` all weights are shared. None where the model cannot be copied, or has
    weights that are more than their numbers, as quantised ones are.
    """
    if any(type(parameter) is not nn.Parameter for parameter in model.parameters()):
        return None
    known: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad)
        for p in model.parameters()
        if not (trained and p.requires_grad)
    }
    try:
        return copy.deepcopy(model, known)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return None
