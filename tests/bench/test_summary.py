"""The README's figures are those of the committed results."""

from pathlib import Path

from fastlr.bench import summary

ROOT = Path(__file__).parents[2]


def test_readme_has_the_table():
    readme = (ROOT / "README.md").read_text()
    lines = readme.split("<!-- speed -->\n")[1].split("<!-- end -->")[0].splitlines()
    assert lines == summary.table(ROOT / "bench" / "results")


def test_ratios_are_paired():
    times = {"speedup": {"over": "a", "median": 2.0}, "speedup_over": {"b": {"median": 3.0}}}
    assert (summary.ratio(times, "a"), summary.ratio(times, "b")) == (2.0, 3.0)
