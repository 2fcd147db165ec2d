"""A run goes on as what it is, or not at all; what is over stays so."""

import io
import shutil
import sys
from pathlib import Path

import ase.io
import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))
from train_toy import write_run

from fastlr.checkpoint import load_checkpoint
from fastlr.errors import CheckpointError, ConfigError
from fastlr.train import TrainingStopped, train
from fastlr.train.config import TrainingConfig
from fastlr.train.history import append_row, keep_rows, read_rows
from fastlr.train.module import TrainingModule
from fastlr.train.process import OutputError
from fastlr.train.recorder import why_over

pytestmark = pytest.mark.filterwarnings("ignore:.*charged structures have dipoles")
SETTINGS = {
    "schedule": "plateau",
    "plateau_patience": 1,
    "warmup_steps": 0,
    "early_stopping": 9,
    "learning_rate": 0.5,  # so high that the second epoch is worse than the first
    "weight_decay": 0.01,
}


def last(output):
    return torch.load(output / "last.ckpt", weights_only=True)


def assert_equal(a, b, where=""):
    """Whatever checkpoints hold, but for times."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"elapsed", "seconds"}:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{k}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two epochs of six structures, stopped in the third of three, and the configuration."""
    directory = tmp_path_factory.mktemp("resume")
    config = write_run(directory, train=6, max_epochs=3, batch_size=2, **SETTINGS)
    original = TrainingModule.on_train_batch_end

    def interrupt(self, outputs, batch, batch_idx):
        self.stop.received = 2 if (self.current_epoch, batch_idx) == (2, 1) else None
        original(self, outputs, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingStopped, match="after 2 whole epochs") as stopped:
        patch.setattr(TrainingModule, "on_train_batch_end", interrupt)
        train(config, directory / "stopped")
    assert stopped.value.exit_code == 130
    return directory, config


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the stopped run, to do something with."""
    directory, config = run
    shutil.copytree(directory / "stopped", tmp_path / "out")
    return tmp_path / "out", config


def test_a_run_stopped_within_an_epoch_goes_on_bitwise(run, copy):
    directory, config = run
    output, _ = copy
    assert (
        last(output)["fastlr"]["schedule"]["factor"] == 0.5 and last(output)["callbacks"]["Recorder"]["best_epoch"] == 1
    )
    train(config, directory / "whole")
    train(config, output, resume=True)
    assert_equal(last(output), last(directory / "whole"))
    found, expected = (load_checkpoint(folder / "model.safetensors")[1] for folder in (output, directory / "whole"))
    assert_equal(found, expected)
    rows, whole = (read_rows(folder / "metrics.csv") for folder in (output, directory / "whole"))
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in whole]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("loss.energy=2", r"loss\.energy"),
        ("loss.huber_delta=0.1", r"loss\.huber_delta"),
        ("training.learning_rate=0.01", r"training\.learning_rate"),
        ("training.batch_size=3", r"training\.batch_size"),
        ("training.ema=0.9", r"training\.ema"),
        ("training.seed=1", r"training\.seed"),
        ("training.schedule=cosine", r"training\.schedule"),
        ("model.r_max=3", r"model\.r_max"),
        ("model.num_layers=2", r"model\.num_layers"),
        ("model.energy_scales=2", r"model\.energy_scales"),
        ("model.species=[O, H]", r"model\.species"),
        ("model.electronegativity_shifts=0", r"model\.electronegativity_shifts"),
        ("training.start_from=nowhere.safetensors", r"training\.start_from"),
    ],
)
def test_other_settings_are_refused(run, override, key):
    directory, config = run
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (directory / "stopped").iterdir())
    with pytest.raises(ConfigError, match=rf"^{key}: is .*but the run to resume was started with"):
        train(config, directory / "stopped", resume=True, overrides=[override])
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (directory / "stopped").iterdir()) == before


def test_the_model_of_a_run_may_be_spelled_out(run, copy):
    output, config = copy
    train(output / "config.yaml", output, resume=True, overrides=["training.num_workers=0"])
    assert last(output)["epoch"] == 2
    explicit = {**config, "model": {**config["model"], "r_max": 3.5, "parity": True}}
    assert train(explicit, output, resume=True).is_file()


def test_other_data_are_refused_under_the_same_name_and_the_same_are_taken_under_another(run, copy, tmp_path):
    directory, config = run
    output, _ = copy
    for key in ("train", "validation"):
        frames = ase.io.read(directory / f"{key}.extxyz", ":")
        ase.io.write(tmp_path / f"{key}.extxyz", frames)
        frames[1].calc.results["energy"] += 1e-6
        ase.io.write(tmp_path / f"other {key}.extxyz", frames)
        with pytest.raises(ConfigError, match=rf"data\.{key}: these are not the structures"):
            train(config, output, resume=True, overrides=[f"data.{key}={tmp_path}/other {key}.extxyz"])
    moved = [f"data.{key}={tmp_path}/{key}.extxyz" for key in ("train", "validation")]
    train(config, output, resume=True, overrides=moved)
    assert last(output)["epoch"] == 2


def test_a_run_that_is_over_is_left_alone(run, copy):
    output, config = copy
    said = io.StringIO()
    train(config, output, resume=True, overrides=["training.max_epochs=3"])
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in output.iterdir()}
    for overrides, part in (([], "all epochs done"), (["training.max_epochs=2"], "all epochs done")):
        train(config, output, resume=True, overrides=overrides, console=Console(file=said, width=1000))
        assert f"nothing to do: the run in {output} is over ({part}) after 3 epochs" in said.getvalue()
    state = {"epochs": 3, "best_epoch": 3, "elapsed": 0.9, "seconds": 0.3}
    assert why_over(state, TrainingConfig(max_epochs=9, max_time="00:00:01")) == "the time is up"
    assert why_over(state, TrainingConfig(max_epochs=9, max_time="00:00:02")) == ""
    assert why_over({**state, "best_epoch": 1}, TrainingConfig(early_stopping=2)).startswith("no better validation")
    assert why_over({**state, "best_epoch": 1}, TrainingConfig(early_stopping=3)) == ""
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in output.iterdir()} == before
    train(
        config, output, resume=True, overrides=["training.max_epochs=9", "training.max_time=0.0001"]
    )  # over, for the time is up
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in output.iterdir()} == before
    (output / "summary.json").unlink()  # ended while the errors were found: these are made up for, without an epoch
    train(config, output, resume=True)
    assert (output / "summary.json").is_file() and last(output)["epoch"] == 2


def test_checkpoints_that_are_none(copy):
    output, config = copy
    whole = (output / "last.ckpt").read_bytes()
    weights = max(last(output)["state_dict"].values(), key=torch.numel)
    flipped = bytearray(whole)
    flipped[whole.index(weights.numpy().tobytes()) + 8] ^= 1  # in the mantissa of a number
    torch.save({"epoch": 1}, output / "last.ckpt")
    for content in (b"", whole[:100], whole[:-10], bytes(flipped), (output / "last.ckpt").read_bytes()):
        (output / "last.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"last\.ckpt: (is no complete|does not say)"):
            train(config, output, resume=True)
    (output / "last.ckpt").write_bytes(whole)
    (output / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"lacks model\.safetensors"):
        train(config, output, resume=True)


def test_a_folder_with_a_users_configuration_is_no_run(tmp_path):
    config = write_run(tmp_path, train=2)
    (tmp_path / "config.yaml").write_text("mine: true")
    with pytest.raises(ConfigError, match="no run to resume"):
        train(config, tmp_path, resume=True)
    assert (tmp_path / "config.yaml").read_text() == "mine: true"


def test_another_version_is_told(copy, monkeypatch):
    output, config = copy
    monkeypatch.setattr("fastlr.train.loop.versions", lambda: {"torch": "1.0"})
    with pytest.warns(UserWarning, match=r"was made with .*goes on with torch 1\.0, accelerator .*: not to the bit"):
        train(config, output, resume=True)


def test_torn_rows_are_made_again(tmp_path):
    path = tmp_path / "metrics.csv"
    for epoch in (1, 2, 3, 12):
        append_row(path, {"epoch": epoch, "train_loss": 0.5})
    path.write_text(path.read_text() + "1")  # of 13, when the disk was full
    keep_rows(path, 12)
    assert [row["epoch"] for row in read_rows(path)] == [1, 2, 3, 12]
    keep_rows(path, 2)
    assert [row["epoch"] for row in read_rows(path)] == [1, 2]


def test_what_cannot_be_written_is_told(copy, monkeypatch):
    """As on a full disk: the checkpoint of the third epoch."""
    from fastlr.train import recorder

    output, config = copy

    def full(trainer, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(recorder, "save_checkpoint", full)
    with pytest.raises(OutputError, match=r"^output: .*\.ckpt cannot be written \(No space.*after 2 whole epochs"):
        train(config, output, resume=True)
    assert last(output)["epoch"] == 1
