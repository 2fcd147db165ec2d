import shlex
import signal
import sys
from pathlib import Path

import typer
import yaml
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from train_toy import write_run

from fastlr.cli import main
from fastlr.cli.train import train
from fastlr.errors import ConfigError
from fastlr.train.module import TrainingModule


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


def test_a_signal_has_its_exit_code_and_the_command_that_goes_on(tmp_path, monkeypatch, capsys):
    path = tmp_path / "my config.yaml"
    path.write_text(yaml.safe_dump(write_run(tmp_path, train=4)))
    original = TrainingModule.on_train_batch_end

    def interrupt(self, *args):
        if self.current_epoch == 1:
            signal.raise_signal(signal.SIGTERM)
        original(self, *args)

    arguments = ["train", str(path), "--output", str(tmp_path / "out"), "--set", "training.max_epochs=2"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_batch_end", interrupt)
        assert main(arguments) == 143
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "stopped after 1 whole epochs, which are saved (model.safetensors: epoch 1)" in said[0]
    command = shlex.split(said[0].split("go on with: ")[1])
    assert command[0] == "fastlr" and main(command[1:]) == 0
    assert main(command[1:]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_errors_are_one_line(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("model: {kind: nequip}\ndata: {train: a.xyz}\nmodel: {kind: nequip-lr}\n")
    assert main(["train", str(path)]) == 2
    assert capsys.readouterr().err == f"error: {path}: the key 'model' stands twice, in lines 1 and 3\n"
    path.write_text("model: {kind: nequip}\ndata: {train: a.xyz, validation: b.xyz}\n")
    assert main(["train", str(path), "--output", ""]) == 2
    assert capsys.readouterr().err == "error: output: must be the name of a folder, got ''\n"
