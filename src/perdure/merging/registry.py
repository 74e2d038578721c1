"""What is found by the name of its module: the rules of merging, and the treatments after them."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from perdure.config import checked
from perdure.errors import PerdureError, nearest


Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Registry(Generic[Kind]):
    """The classes of a package, each in the module of its name.

    Args:
        package: the name of the package.
        path: where its modules are.
        kind: the class from which they are derived, which has the keywords as its fields.
        word: what one of them is called in error lines.
        other_names: what other tools call one of them, or a keyword.
    """

    package: str
    path: Iterable[str]
    kind: type[Kind]
    word: str
    other_names: Mapping[str, str]

    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(module.name for module in pkgutil.iter_modules(self.path))

    def find(self, name: str) -> type[Kind]:
        """The class of this name.

        Raises:
            PerdureError: there is none; the message has the nearest name.
        """
        if name not in self.names():
            raise PerdureError(f"unknown {self.word} {name!r}; {self.hint(name, self.names())}")
        module = importlib.import_module(f"{self.package}.{name}")
        classes = [value for _, value in inspect.getmembers(module, inspect.isclass)]
        own = [c for c in classes if issubclass(c, self.kind) and c.__module__ == module.__name__]
        return own[0]

    def keywords(self, name: str) -> dict[str, inspect.Parameter]:
        """The keywords of the class of this name, with their types and defaults."""
        return dict(inspect.signature(self.find(name)).parameters)

    def make(self, name: str, values: Mapping[str, Any]) -> Kind:
        """Return an object of the class of this name.

        Raises:
            PerdureError: there is no such class or keyword, or a value has the wrong type or range.
        """
        found, valid, given = self.find(name), self.keywords(name), dict(values)
        for key, value in given.items():
            if key not in valid:
                raise PerdureError(f"{name} has no keyword {key!r}; {self.hint(key, valid)}")
            given[key] = checked(key, value, valid[key].annotation, name)
        return found(**given)

    def hint(self, word: str, valid: Any) -> str:
        """Return the end of an error line: what may have been meant."""
        other = self.other_names.get(word)
        return f"did you mean {other!r}?" if other in valid else nearest(word, valid)
