"""Memory of freed tensors serves the next ones, where the C library can be told so."""

import platform
import subprocess
import sys

import pytest

PAGES_OF_A_TENSOR = """
import resource, torch
from fastlr.kernels import freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(10_000_000, dtype=torch.float64)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = new_pages()
assert freed_memory.keep() and freed_memory.keep()
new_pages()
print(given_back, new_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_large_tensors_come_from_memory_that_was_freed():
    out = subprocess.run([sys.executable, "-c", PAGES_OF_A_TENSOR], check=True, capture_output=True, text=True).stdout
    given_back, kept = map(int, out.split())
    assert kept < 0.1 * given_back


def test_only_large_meshes_ask_for_it():
    script = """
import torch
from fastlr.kernels import freed_memory
from fastlr.kernels.ewald_mesh.convolution import transform
asked = []
freed_memory.keep = lambda: asked.append(1)
transform(torch.zeros(128, 128, 128, dtype=torch.float64))
assert not asked
transform(torch.zeros(128, 128, 130, dtype=torch.float64))
assert asked
"""
    subprocess.run([sys.executable, "-c", script], check=True)
