"""Linking of machine code: anywhere in a crowded address space, and errors instead of wrong addresses."""

import ctypes
import subprocess
import sys

import pytest
from fastlr.kernels import cache, jit

# a function that returns entry i of a table of n numbers, which lies in another section than the code
TABLE = """
from fastlr.kernels import jit

def look_up(first: int, n: int):
    values = ", ".join(f"double {first + i}.125" for i in range(n))
    return jit.addresses(jit.object_code(f'''
@values = private constant [{n} x double] [{values}]
define double @look_up(i64 %i) {{
  %place = getelementptr double, ptr @values, i64 %i
  %value = load double, ptr %place
  ret double %value
}}'''), ["look_up"])[0]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="flags of mmap are those of Linux")
def test_large_mappings_between_loads():
    """Sections that fill whole pages leave none of the last object's; the next ones would lie 3 GiB further down."""
    script = f"""{TABLE}
import ctypes
library = ctypes.CDLL(None)
library.mmap.restype = ctypes.c_void_p
library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]

def reserve(size: int) -> int:
    none, private_anonymous_noreserve = 0, 0x4022
    return library.mmap(None, size, none, private_anonymous_noreserve, -1, 0)

for k in range(20):
    floor = reserve(3 * 2**30)
    for size in (2**26, 2**20, 2**16, 2**12):
        while reserve(size) > floor:  # until there are no holes above it
            pass
    function = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64)(look_up(k, 512 * (1 + k % 3) - k % 6))
    assert [function(i) for i in (0, 5, 500)] == [k + 0.125, k + 5.125, k + 500.125]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_symbols_from_elsewhere():
    """Functions of the C library are found; others are those that were given."""
    twice = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(lambda x: 2.0 * x)
    assembly = """
declare double @twice(double)
declare double @pow(double, double)
define double @both(double %x) {
  %a = call double @twice(double %x)
  %b = call double @pow(double %a, double 1.5)
  ret double %b
}"""
    imports = {"twice": ctypes.cast(twice, ctypes.c_void_p).value}
    (address,) = jit.addresses(jit.object_code(assembly), ["both"], imports)
    assert ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(address)(4.5) == pytest.approx(27.0, rel=1e-14)
    with pytest.raises(RuntimeError, match="both"):
        jit.addresses(jit.object_code(assembly), ["both"])


def test_no_object_and_no_such_function():
    code = jit.object_code("define i64 @one() {\n ret i64 1\n}")
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(jit.addresses(code, ["one"])[0])() == 1
    with pytest.raises(RuntimeError, match="two"):
        jit.addresses(code, ["one", "two"])
    with pytest.raises(RuntimeError, match="object file"):
        jit.addresses(b"no object", ["one"])
    assert len(set(jit.addresses(code, ["one"]) + jit.addresses(code, ["one"]))) == 2


def test_files_that_cannot_be_loaded(tmp_path, monkeypatch):
    """Damaged, no object, or without the function: compiled anew, and then right in the cache."""
    monkeypatch.setenv("FASTLR_CACHE", str(tmp_path))
    written = []

    def source() -> str:
        written.append(1)
        return "define i64 @one() {\n ret i64 1\n}"

    def value() -> int:
        return ctypes.CFUNCTYPE(ctypes.c_int64)(jit.cached("one", source, ["one"])[0])()

    assert [value(), value()] == [1, 1]
    assert len(written) == 1
    whole = (tmp_path / "one.o").read_bytes()
    (tmp_path / "one.o").write_bytes(whole[:-1])
    assert value() == 1
    for content in (b"no object", jit.object_code("define i64 @two() {\n ret i64 2\n}")):
        cache.write("one.o", content)
        assert value() == 1
    assert len(written) == 4
    assert (tmp_path / "one.o").read_bytes() == whole
