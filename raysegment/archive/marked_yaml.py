"""YAML of users, with the line of each key and item for messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from raysegment.archive.names import TO_ESCAPE, show_name, show_value
from raysegment.errors import UsageError


class MarkedMapping(dict[Any, Any]):
    """A mapping of a file that knows the line of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Any, int] = {}


class MarkedList(list[Any]):
    """A list of a file that knows the line of each item."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[int] = []


class _Loader(yaml.SafeLoader):
    """Refuses aliases: a few lines of them stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = yaml.Mark("", self.index, self.line, self.column, None, 0)
            raise _refusal("aliases such as *name are not read; write the value itself", mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            # What PyYAML lets through where a value is not what its form or its tag says.
            kind = node.tag.rpartition(":")[2]
            raise _refusal(f"{show_value(node.value)} is no {kind}", node.start_mark) from None


def _refusal(text: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, text, mark)


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    if "\0" in text or (not text.isascii() and TO_ESCAPE.search(text)):
        raise _refusal(f"{show_value(text)} holds a character that no name can have", node.start_mark)
    return text


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> MarkedMapping:
    found = MarkedMapping()
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        try:
            is_twice = key in found
        except TypeError:
            raise _refusal("a name must be text", key_node.start_mark) from None
        if is_twice:
            raise _refusal(f"{show_name(str(key))[:80]} stands there twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
        found.lines[key] = key_node.start_mark.line + 1
    return found


def _construct_list(loader: _Loader, node: yaml.SequenceNode) -> MarkedList:
    found = MarkedList()
    for item in node.value:
        found.append(loader.construct_object(item, deep=True))
        found.lines.append(item.start_mark.line + 1)
    return found


# An equals sign alone has a type of its own in YAML 1.1, which nobody means.
for _tag in ("str", "value"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct_text)
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _construct_list)


def read_marked(data: bytes, where: str, expected: str) -> Iterator[tuple[str, int, Any]]:
    """Key as it is written, line and value of what stands at a file's left edge.

    Mappings and lists among the values are `MarkedMapping` and `MarkedList`.

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
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        cause = " ".join(show_name(str(error.problem or error.context)).split())
        raise UsageError(f"{where} cannot be read as YAML: {line}{cause}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        cause = " ".join(show_name(" ".join(str(error).split())).split())
        raise UsageError(f"{where} cannot be read as YAML: {cause}") from None
