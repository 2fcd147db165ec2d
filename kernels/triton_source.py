"""Triton kernels written line by line."""

import linecache

import torch
import triton
import triton.language as tl

FLOAT = {torch.float32: "tl.float32", torch.float64: "tl.float64"}


class Source:
    """The text of a kernel, written line by line."""

    def __init__(self, name: str, parameters: list[str]):
        self.name = name
        self.lines, self.depth = [f"def {name}({', '.join(parameters)}):"], 1

    def __call__(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def indented(self):
        return self

    def __enter__(self):
        self.depth += 1

    def __exit__(self, *_):
        self.depth -= 1

    def kernel(self, **options):
        """The Triton function. Its text is kept where Python's ``inspect`` looks for it."""
        text = "\n".join(self.lines) + "\n"
        filename = f"<fastlr {self.name} {abs(hash(text)):x}>"
        linecache.cache[filename] = len(text), None, text.splitlines(keepends=True), filename
        scope = {"tl": tl}
        exec(compile(text, filename, "exec"), scope)
        function = triton.jit(scope[self.name], **options)
        function.text = text
        return function
