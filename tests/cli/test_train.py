import sys
from pathlib import Path

import typer
import yaml
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from train_toy import write_run

from fastlr.cli.train import train
from fastlr.errors import ConfigError


def invoke(*args):
    app = typer.Typer()
    app.command("train")(train)
    return CliRunner().invoke(app, [str(a) for a in args])


def test_a_run_from_the_shell(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(write_run(tmp_path)))
    result = invoke(path, "--output", tmp_path / "out", "--set", "training.max_epochs=1")
    assert result.exit_code == 0, result.output
    assert "meV/Å" in result.output and "epoch    1/1" in result.output
    assert (tmp_path / "out" / "model.safetensors").is_file()
    again = invoke(path, "--output", tmp_path / "out")
    assert isinstance(again.exception, ConfigError)
