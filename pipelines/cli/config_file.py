"""A file of parameters, YAML with a line NAME: VALUE for each, read as if its lines stood on the command line."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipelines.cli.parameters import UsageError, excerpt
from pipelines.cli.parser import Option

_LOADER = (
    yaml.BaseLoader
)  # leaves every value the text that it is: no, 012 and 1e-5 mean what they mean on a command line


def read(path: str) -> list[Option]:
    """Return the parameters of a file, in order; a list of values is joined by commas.

    Raises:
        UsageError: the file cannot be read, or is not a mapping of names to values.
    """
    try:
        content = Path(path).expanduser().read_text(encoding="utf-8")
        root = yaml.compose(content, Loader=_LOADER)
    except OSError as error:
        raise UsageError(f"config = {excerpt(path)} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"config = {excerpt(path)} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"config = {excerpt(path)} has no parameters; write a line NAME: VALUE for each")
    return [(_name(key, path), _text(key, value, path)) for key, value in root.value]


def merge(given: list[Option], from_file: list[Option], not_given: str) -> list[Option]:
    """Return what the user gave and, of the file, what the user did not give.

    Some parameters take the word for `not given` as a value; it stays where the file has none.
    """
    names = {name for name, text in given if text != not_given} | ({name for name, _ in given} - dict(from_file).keys())
    return [option for option in given if option[0] in names] + [each for each in from_file if each[0] not in names]


def _name(node: yaml.Node, path: str) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError(f"config = {excerpt(path)} is not allowed: a name of line {_line(node)} is not text")
    return str(node.value).replace("-", "_")


def _text(key: yaml.Node, node: yaml.Node, path: str) -> str:
    values = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(each, yaml.ScalarNode) for each in values):
        allowed = f"{excerpt(str(key.value))} is one value, or a list of values"
        raise UsageError(f"config = {excerpt(path)} is not allowed in line {_line(node)}: {allowed}")
    return ",".join(str(each.value) for each in values)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
