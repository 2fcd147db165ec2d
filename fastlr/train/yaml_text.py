"""YAML as its version 1.2 reads it: 12:00:00, no, N, 010 and dates are what they look like, and no key stands twice."""

import re
from typing import Any

import yaml

from fastlr.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """PyYAML reads version 1.1, in which 12:00:00 is 43200, `no` is false and 1e-3 is text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's way)

    def construct_mapping(self, node, deep=False):
        if isinstance(node, yaml.MappingNode):
            self._refuse_repeated(node)
        return super().construct_mapping(node, deep)

    def construct_yaml_map(self, node):
        self._refuse_repeated(node)  # before the keys of anchors are merged in, which may stand for others
        yield from super().construct_yaml_map(node)

    def _refuse_repeated(self, node):
        if getattr(node, "checked", False):
            return
        node.checked = True
        lines = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                where = sorted({lines[key.value], key.start_mark.line + 1})
                where = f"line{'s' * (len(where) > 1)} {' and '.join(map(str, where))}"
                raise yaml.constructor.ConstructorError(problem=f"the key '{key.value}' stands twice, in {where}")
            lines[key.value] = key.start_mark.line + 1

    def construct_number(self, node):
        text = self.construct_scalar(node)
        try:
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        except ValueError:
            what = f"'{text}' is no whole number" if len(text) < 100 else f"a number of {len(text)} digits"
            raise yaml.constructor.ConstructorError(problem=what, problem_mark=node.start_mark) from None


_SCALARS = (  # the core schema, https://yaml.org/spec/1.2.2/#1032-tag-resolution
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)
for _name, _pattern, _first in _SCALARS:
    _letters = ["" if letter == "\0" else letter for letter in _first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _letters)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_yaml_map)


def parse_yaml(text: str | bytes, what: str) -> Any:
    """Plain data from YAML.

    Args:
        text: bytes are UTF-8, or UTF-16 if they begin with its mark, whatever the locale is.
        what: what errors call it.

    Raises:
        ConfigError: not YAML, not text, a key stands twice, or something else than plain data.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{what}: {_one_line(error)}") from None
    except (ValueError, KeyError, OverflowError) as error:  # of values that do not fit the tags they are given
        raise ConfigError(f"{what}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{what}: not valid YAML: it is nested too deeply") from None


def _one_line(error: yaml.YAMLError) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if isinstance(error, yaml.reader.ReaderError):
        return f"not text in UTF-8 ({' '.join(str(error).split())})"
    if problem and "stands twice" in problem:
        return problem
    where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
    return f"not valid YAML{where}: {' '.join((problem or str(error)).split())}"
