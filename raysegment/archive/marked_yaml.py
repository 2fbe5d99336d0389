"""YAML of users, with the line of each key for messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from raysegment.archive.names import show_name
from raysegment.errors import UsageError


class MarkedMapping(dict[Any, Any]):
    """A mapping below a file's left edge that knows where its keys stand.

    Attributes:
        lines: Line of each key.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Any, int] = {}


class _Loader(yaml.SafeLoader):
    """Refuses aliases: a few lines of them stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.line + 1
            raise yaml.YAMLError(f"line {line}: aliases such as *name are not read; write the value itself.")
        return super().compose_node(parent, index)


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> Iterator[MarkedMapping]:
    mapping = MarkedMapping()
    yield mapping
    loader.flatten_mapping(node)
    for key, value in node.value:
        name = loader.construct_object(key, deep=True)
        line = key.start_mark.line + 1
        try:
            is_known = name in mapping
        except TypeError:
            raise yaml.YAMLError(f"line {line}: a name must be text.") from None
        if is_known:
            raise yaml.YAMLError(f"line {line}: {name} stands there twice.")
        mapping[name] = loader.construct_object(value, deep=True)
        mapping.lines[name] = line


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)

# An equals sign alone has a type of its own in YAML 1.1, which nobody means.
_Loader.add_constructor("tag:yaml.org,2002:value", _construct_text)


def read_marked(data: bytes, where: str, expected: str) -> Iterator[tuple[str, int, Any]]:
    """Key as it is written, line and value of what stands at a file's left edge; mappings below are `MarkedMapping`.

    Args:
        data: The file's bytes.
        where: Its name, for messages.
        expected: What it should hold, for messages.

    Raises:
        UsageError: It is no YAML, or holds no keys.
    """
    try:
        loader = _Loader(data)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{where} holds no {expected}.")
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or not key.value.strip():
                raise UsageError(f"{where}, line {line}: a name must be text.")
            yield str(key.value).strip(), line, loader.construct_object(value, deep=True)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{where} cannot be read as YAML: {' '.join(show_name(str(error)).split())}") from None
