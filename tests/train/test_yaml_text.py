"""Configurations mean what they look like."""

import pytest

from fastlr.errors import ConfigError
from fastlr.train.yaml_text import parse_yaml


def test_values_are_what_they_look_like():
    text = """
    time: 12:00:00
    day: 2020-01-01
    small: 1e-3
    species: [N, O, No, Y, yes, on, off]
    shifts: {N: -1, No: 2.5, Y: .5}
    padded: 010
    octal: 0o10
    hexadecimal: 0x10
    grouped: 1_000
    nothing:
    also nothing: ~
    switches: [true, False]
    quoted: "1e-3"
    """
    assert parse_yaml(text, "file") == {
        "time": "12:00:00",
        "day": "2020-01-01",
        "small": 0.001,
        "species": ["N", "O", "No", "Y", "yes", "on", "off"],
        "shifts": {"N": -1, "No": 2.5, "Y": 0.5},
        "padded": 10,
        "octal": 8,
        "hexadecimal": 16,
        "grouped": "1_000",
        "nothing": None,
        "also nothing": None,
        "switches": [True, False],
        "quoted": "1e-3",
    }


def test_anchors_may_be_merged_into_what_says_otherwise():
    text = "a: &a {x: 1, y: 2}\nb: &b {x: 3}\nc:\n  <<: [*a, *b]\n  y: 4"
    assert parse_yaml(text, "file")["c"] == {"x": 1, "y": 4}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", "lines 1 and 3"),
        ("s:\n  a: 1\n  b: 2\n  a: 3", "lines 2 and 4"),
        ("s: [{a: 1, 'a': 2}]", "line 1"),
    ],
)
def test_no_key_stands_twice(text, line):
    with pytest.raises(ConfigError, match=f"file: the key 'a' stands twice, in {line}"):
        parse_yaml(text, "file")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_unicode(encoding):
    assert parse_yaml("a: Å".encode(encoding), "file") == {"a": "Å"}


@pytest.mark.parametrize(
    "text",
    [
        "a: Å".encode("latin-1"),
        "a:\n\tb: 1",
        "a: [1",
        "a: 1\n---\na: 2",
        "a: !!python/object/apply:os.getcwd []",
        "a: !!bool perhaps",
        "a: !!int x",
        "a: " + "9" * 5000,
        "[" * 400,
        "? [1]\n: 2",
        "a: *nowhere",
    ],
    ids=range(11),
)
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match=r"^file: .") as error:
        parse_yaml(text, "file")
    assert "\n" not in str(error.value)
