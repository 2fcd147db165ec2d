"""The table of what was tried names tests that exist."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_the_table_names_tests_that_are_there():
    rows = [line for line in (HERE / "TRIED.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    sources = {path.name: path.read_text(encoding="utf-8") for path in HERE.rglob("test_*.py")}
    defined = {name for text in sources.values() for name in re.findall(r"^\s*(?:def|class) (\w+)", text, re.MULTILINE)}
    assert len(rows) > 150
    for row in rows:
        *_, test, end = row.split("|")
        assert end == "", row
        names = re.findall(r"\b(?:test_\w+|Test\w+)\b(?!\.py)", test)
        files = [Path(name).name for name in re.findall(r"[\w/]*test_\w+\.py", test)]
        assert not set(names) - defined, row
        assert not set(files) - set(sources), row
        assert names or files or "by hand" in test or test.strip() in ("test", "same"), row
