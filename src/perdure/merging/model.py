"""What is merged: the base, and the checkpoints, which are whole models or LoRA adapters of it."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from perdure.merging.adapter import Adapter
from perdure.merging.alignment import Alignment
from perdure.merging.checkpoint import Tensors, hashes_of, model_files, model_folder
from perdure.merging.fold import Piece
from perdure.merging.layers import Layers
from perdure.merging.pack import ABOUT as PACK_SETTINGS
from perdure.merging.pack import PACKED as PACK_WEIGHTS
from perdure.merging.pack import Pack, identity_of, is_pack
from perdure.merging.rule import Place, Role
from perdure.merging.statistics import Statistics
from perdure.merging.token_axes import token_axes
from perdure.models.as_is import is_adapter
from perdure.models.base import load_config_and_tokenizer
from perdure.models.kinds import Kind, kind_of
from perdure.models.layout import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, HEAD_WEIGHTS
from perdure.models.limits import skeleton
from perdure.seeds import digest


EMBEDDINGS = ("embed", "wte", "wpe")  # parts of the names of tables of embeddings


class Model:
    """The base of the checkpoints.

    Args:
        name: its folder, its name on the hub, `default` or `smollm2`.
        revision: the commit of a base on the hub.
        folder: the folder of its weights, if it is another one than that of its config and
            tokenizer, as of a stage of a lineage.
        bare: whether an encoder is read without the head of its pretraining and its prefix, under
            the names that the stages of a lineage have. `left_out` has the names of that head.

    Raises:
        PerdureError: there is no such model, or its files cannot be used.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        folder: Path | None = None,
        bare: bool = False,
    ):
        self.name, self.revision = name, revision
        self.folder = folder or model_folder(name, revision)
        self.tensors = Tensors(model_files(self.folder))
        loaded: tuple[Any, PreTrainedTokenizerBase] = load_config_and_tokenizer(name, revision)
        self.config, self.tokenizer = loaded
        self.left_out: list[str] = []
        if bare and self.kind == "encoder":
            self._leave_out_the_head()

    def _leave_out_the_head(self) -> None:
        """Keep only the tensors of the encoder, under its own names for them."""
        model = skeleton(self.config, self.kind)
        own = model.state_dict().keys() if model is not None else ()
        prefix = f"{model.base_model_prefix}." if model is not None else ""
        kept = {}
        for name, stored in self.tensors.stored.items():
            bare_name = name.removeprefix(prefix)
            if bare_name in own:
                kept[bare_name] = stored
            elif stored.is_float:
                self.left_out.append(name)
        if kept:
            self.tensors.stored = kept

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of the files of its weights."""
        return hashes_of(self.tensors.files)

    @property
    def kind(self) -> Kind:
        return kind_of(self.config, self.name)

    @cached_property
    def _known(self) -> tuple[set[str], dict[str, str], set[str]]:
        """The names of tables of embeddings, of tied weights with their twins, of transposed ones.

        The twin of a tied weight is the one that it is tied to.
        """
        model = skeleton(self.config, self.kind)
        if model is None:
            return set(), {}, set()
        tables = {
            f"{name}.weight"
            for name, module in model.named_modules()
            if isinstance(module, nn.Embedding)
        }
        transposed = {
            f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)
        }
        return tables, dict(model.get_expanded_tied_weights_keys(all_submodels=True)), transposed

    @property
    def tied(self) -> dict[str, str]:
        """The names of weights that are another one's, with the name of the other."""
        return self._known[1]

    def twin(self, name: str) -> str | None:
        """Return the tensor of the files that a tied weight shares, None if it has its own."""
        pairs = self.tied.items()
        others = [source for target, source in pairs if target == name]
        others += [target for target, source in pairs if source == name]
        others += [t for t, source in pairs if source == self.tied.get(name)]
        return next((o for o in others if o != name and o in self.tensors.stored), None)

    @cached_property
    def token_axes(self) -> dict[str, int]:
        """The tensors of its files that have a row for each token, with the axis (`token_axes`)."""
        return token_axes(self.config, self.kind, self.tensors.stored, self.name)

    def places(self) -> Iterator[Place]:
        """The tensors of its files that are merged, in the order of their names."""
        for name in sorted(self.tensors.stored):
            stored = self.tensors.stored[name]
            if stored.is_float:
                yield Place(
                    name,
                    stored.shape,
                    self.role(name),
                    depth=self.layers.depth(name),
                    transposed=name in self._known[2],
                )

    @cached_property
    def layers(self) -> Layers:
        """Its stacks of numbered layers."""
        return Layers(self.tensors.stored)

    def role(self, name: str) -> Role:
        """Return what a tensor is for."""
        if len(self.tensors.stored[name].shape) < 2:
            return "vector"
        tables, parts = self._known[0], name.split(".")
        if name in tables or any(part.startswith(EMBEDDINGS) for part in parts[-2:]):
            return "embedding"
        return "matrix"


@dataclass
class Checkpoint:
    """A checkpoint that is merged.

    Args:
        name: its folder or name, as it was given.
        weight: its weight, None if none was given.
        folder: the folder from which its files are read.
        whole: its tensors, if it is a whole model.
        adapter: its adapter, if it is one.
        statistics: what was measured of it, if the rule needs that.
        pack: what it has other than the base, if it is stored so.
        alignment: which of its rows are which of the base's, if its vocabulary is another one.
        pin: the pin of its base, if it is the newest stage of a lineage.
        place: the folder that it is in, if its files are read from a copy.
    """

    name: str
    weight: float | None
    folder: Path
    whole: Tensors | None = None
    adapter: Adapter | None = None
    statistics: Statistics | None = None
    pack: Pack | None = None
    alignment: Alignment | None = None
    pin: Mapping[str, Any] | None = None
    place: Path | None = None

    @property
    def has_head(self) -> bool:
        """Whether it is an encoder with a head, as the stages of a lineage are."""
        return (self.folder / HEAD_WEIGHTS).is_file()

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of the files that decide its weights, with the head of an encoder."""
        head = [self.folder / HEAD_WEIGHTS] if self.has_head else []
        if self.whole is not None:
            return hashes_of([*self.whole.files, *head])
        if self.pack is not None:
            return hashes_of([self.folder / PACK_SETTINGS, self.folder / PACK_WEIGHTS, *head])
        return hashes_of([self.folder / ADAPTER_SETTINGS, self.folder / ADAPTER_WEIGHTS, *head])

    @property
    def hashes_of_content(self) -> dict[str, str]:
        """The SHA-256 of the files of what a pack restores exactly, or of its own files."""
        return self.pack.checkpoint if self.pack is not None and self.pack.exact else self.hashes

    @property
    def identity(self) -> str:
        """The hash of its weights, which does not depend on where it is."""
        if self.pack is not None:
            return identity_of(self.pack)
        return digest(sorted(self.hashes.values()))

    @property
    def key(self) -> list[Any]:
        """What decides what it adds to a merge."""
        measured = [self.statistics.sha256] if self.statistics else []
        aligned = [self.alignment.key] if self.alignment else []
        return [self.identity, self.weight, *measured, *aligned]

    @property
    def read_from(self) -> list[Tensors]:
        """What is read while it is merged."""
        stored = self.whole or self.pack or self.part
        tensors = stored if isinstance(stored, Tensors) else stored.tensors
        return [tensors, *([self.statistics.tensors] if self.statistics else [])]

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep its files open for a block."""
        with ExitStack() as stack:
            for tensors in self.read_from:
                stack.enter_context(tensors.open())
            yield

    def statistic(self, name: str, piece: Piece, dtype: torch.dtype) -> Tensor | None:
        """Return what was measured of a piece of a tensor (`Statistics.read`)."""
        return self.statistics.read(name, piece, dtype) if self.statistics else None

    @property
    def part(self) -> Adapter:
        assert self.adapter is not None
        return self.adapter

    def changes(self, name: str) -> bool:
        """Return whether it may have another tensor of this name than the base."""
        return self.adapter is None or name in self.adapter.changed

    def with_rows(self, name: str) -> tuple[Tensors, str]:
        """Return its tensors, and its name of one whose rows are tokens, which it has whole."""
        if self.whole is not None:
            return self.whole, name
        return self.part.tensors, self.part.replaced[name]

    def tau(self, name: str, piece: Piece, base: Tensor) -> Tensor:
        """Return a piece of its task vector, in the data type of the base's piece."""
        if self.alignment is not None and name in self.alignment.axes and self.changes(name):
            tensors, own_name = self.with_rows(name)
            return self.alignment.read(tensors, name, own_name, piece, base)
        if self.whole is not None:
            return self.whole.read(name, piece).to(base.dtype).sub_(base)
        if self.pack is not None:
            return self.pack.change(name, piece, base)
        if not self.changes(name):
            return torch.zeros_like(base)
        return self.part.change(name, piece, base)


def open_checkpoint(name: str, weight: float | None = None) -> Checkpoint:
    """Read which tensors a checkpoint has: a model by folder or name, an adapter, or a pack.

    Raises:
        PerdureError: there is no such checkpoint, or its files cannot be used.
    """
    folder = model_folder(name)
    if is_adapter(str(folder)):
        return Checkpoint(name, weight, folder, adapter=Adapter(folder))
    if is_pack(folder):
        return Checkpoint(name, weight, folder, pack=Pack(folder))
    return Checkpoint(name, weight, folder, whole=Tensors(model_files(folder)))


@contextmanager
def opened(base: Model, checkpoints: list[Checkpoint]) -> Iterator[None]:
    """Keep the files of the base and of all checkpoints open for a block."""
    with ExitStack() as stack:
        stack.enter_context(base.tensors.open())
        for checkpoint in checkpoints:
            stack.enter_context(checkpoint.open())
        yield


@contextmanager
def hashing(base: Model, checkpoints: list[Checkpoint]) -> Iterator[None]:
    """Hash the files of the base and of all checkpoints in a thread, during a block.

    They are known at the end of the block, which takes less time than to hash them before or after.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        hashed = [pool.submit(getattr, model, "hashes") for model in (base, *checkpoints)]
        try:
            yield
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        for future in hashed:
            future.result()
