"""What other systems lack or do otherwise, played on this one."""

import builtins
import ctypes
import ctypes.util
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from fastlr.kernels import cache, threads

from fastlr import memory
from fastlr.errors import ConfigError
from fastlr.train.config import read_config

CPU = torch.device("cpu")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="beside what Linux tells")


@pytest.fixture
def without_proc(monkeypatch):
    """No /proc, as on macOS and Windows."""
    open_ = builtins.open

    def refuse(path, *args, **options):
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(path)
        return open_(path, *args, **options)

    monkeypatch.setattr(builtins, "open", refuse)


@pytest.mark.usefixtures("without_proc")
def test_memory_on_windows(monkeypatch):
    """There is no os.sysconf; the system fills a structure that states its own length."""

    def tell(pointer) -> int:
        status = pointer._obj
        assert status.length == ctypes.sizeof(status) == 64
        status.total, status.free = 2**34, 2**33
        return answer

    monkeypatch.delattr(os, "sysconf")
    windll = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=tell))
    monkeypatch.setattr(ctypes, "windll", windll, raising=False)
    answer = 1
    assert memory.available_bytes(CPU) == 2**33
    answer = 0
    with pytest.raises(OSError, match="give memory_budget"):
        memory.available_bytes(CPU)


@linux_only
@pytest.mark.usefixtures("without_proc")
def test_memory_on_macos():
    assert memory.available_bytes(CPU) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@linux_only
def test_openmp_beside_torch(monkeypatch, tmp_path, request):
    """Found without /proc, the same that PyTorch has loaded; one that is not loaded is left alone."""
    by_maps = threads._loaded_runtime()
    request.getfixturevalue("without_proc")
    if threads._is_runtime(os.path.basename(by_maps)) and Path(by_maps).parent.name == "lib":
        assert os.path.samefile(threads._loaded_runtime(), by_maps)
    (tmp_path / "lib").mkdir()
    shutil.copy(by_maps, tmp_path / "lib" / "libomp.dylib")
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    assert threads._loaded_runtime() is None


def test_runtime_without_a_way_to_start_a_team(monkeypatch):
    """As libiomp5md.dll: kernels run on a pool of threads."""
    library = ctypes.util.find_library("m") if sys.platform == "linux" else None
    monkeypatch.setattr(threads, "_loaded_runtime", lambda: library)
    assert threads._team.__wrapped__() is None
    monkeypatch.setattr(threads, "_team", lambda: None)
    shares = []
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
        lambda pointer, begin, end: shares.append((begin, end))
    )
    threads.run_parallel(kernel, 0, np.array([0, 3, 5, 9]))
    assert sorted(shares) == [(0, 3), (3, 5), (5, 9)]
    shares.clear()
    threads.run_together(kernel, 0, 4)
    assert shares == [(0, 1)]


def test_user_without_a_home(monkeypatch):
    """As in containers that run under any number: nothing is kept, and nothing fails."""

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FASTLR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    cache.write("name", b"content")
    assert cache.read("name") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.directory() == Path("/somewhere/fastlr")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_configurations_as_editors_write_them(tmp_path, encoding):
    """Whatever the system's own encoding is."""
    data = {"model": {"kind": "nequip", "r_max": 4.0, "Å": 1}, "data": {"train": "a.xyz", "validation": "b.xyz"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding=encoding)
    with pytest.raises(ConfigError, match="Å"):
        read_config(path)
    path.write_bytes(b"model: \xff\xfe\xff")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        read_config(path)
