"""Machine code in this process: LLVM assembly becomes an object, and an object becomes functions at addresses.

Objects are linked by LLVM's JITLink, which lays all sections of an object into one piece of memory. (The older linker
of MCJIT asks for memory section by section; where large mappings lie between, as those of a GPU's driver do, addresses
relative to the code overflow 32 bits and LLVM ends the process.)
"""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import llvmlite.binding as llvm

from . import cache
from .forks import wait_before_forks

_lock = threading.RLock()
wait_before_forks(_lock)
_numbers = itertools.count()
_linked: list = []  # functions are good for as long as their library is referenced: to the end of the process


@lru_cache(None)
def target_machine():
    """LLVM's description of this very CPU."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
        reloc="pic",
        codemodel="small",
    )


def stamped(name: str, recipe: str) -> str:
    """The name with a hash of what determines its machine code: the recipe, this package's own text, this CPU and the
    compiler's version."""
    return f"{name}_{hashlib.sha256(f'{_stamp()}{recipe}'.encode()).hexdigest()[:24]}"


@lru_cache(None)
def _stamp() -> str:
    own = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py"))))
    cpu = f"{target_machine().triple} {llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    return f"{own.hexdigest()} {llvm.llvm_version_info} {cpu}"


def cached(
    stamp: str, source: Callable[[], str], names: Iterable[str], imports: Mapping[str, int] | None = None
) -> list[int]:
    """Addresses of functions from the cache, or compiled where it has none or an object that cannot be loaded.

    Args:
        stamp: see ``stamped``.
        source: writes the assembly.
        names, imports: see ``addresses``.
    """
    code = cache.read(f"{stamp}.o")
    if code is not None:
        with suppress(RuntimeError):
            return addresses(code, names, imports)
    code = object_code(source())
    cache.write(f"{stamp}.o", code)
    return addresses(code, names, imports)


def object_code(assembly: str) -> bytes:
    """The object file of a module in LLVM assembly, optimised for this CPU."""
    machine = target_machine()
    with _lock:
        module = llvm.parse_assembly(assembly)
        module.triple = machine.triple
        module.data_layout = str(machine.target_data)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        return machine.emit_object(module)


def addresses(code: bytes, names: Iterable[str], imports: Mapping[str, int] | None = None) -> list[int]:
    """Load an object file and return the addresses of functions in it.

    Args:
        code: the object file.
        names: the functions.
        imports: addresses of what the object uses from elsewhere, by name; functions of the C library are known.

    Raises:
        RuntimeError: the file is not a sound object for this CPU, or lacks one of the functions.
    """
    names = list(names)
    library = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
    for name in names:
        library.export_symbol(name)
    for name, address in (imports or {}).items():
        library.import_symbol(name, address)
    with _lock:
        # each library has a name of its own: that of one that failed cannot be used again
        tracker = library.link(_compiler(), f"fastlr_{next(_numbers)}")
        _linked.append(tracker)
    return [tracker[name] for name in names]


@lru_cache(None)
def _compiler():
    return llvm.create_lljit_compiler(target_machine(), use_jit_link=True, suppress_errors=True)
