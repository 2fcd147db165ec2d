"""Training: ``fastlr.train.train(config)`` is what ``fastlr train`` does."""

from importlib.util import find_spec

from fastlr.errors import FastlrError

if find_spec("lightning") is None:
    raise FastlrError('training needs the package lightning: pip install "fastlr[train]"')

from .loop import TrainingStopped, train

__all__ = ["TrainingStopped", "train"]
