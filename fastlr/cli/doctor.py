"""fastlr doctor: what this machine can run, with which kernels, and the proof that they are right."""

PACKAGES = (
    "fastlr",
    "torch",
    "e3nn",
    "ase",
    "vesin",
    "numpy",
    "safetensors",
    "llvmlite",
    "triton",
    "cuequivariance",
    "cuequivariance-torch",
    "cuequivariance-ops-torch-cu12",
    "lightning",
    "nequip",
    "mace-torch",
)


def doctor() -> None:
    """Report versions, devices and backends, and measure each backend against the reference."""
    from rich.console import Console

    console = Console()
    console.print(_versions())
    console.print(_devices())
    for device in _available_devices():
        console.print(_backends(device))
        console.print(_choices(device))


def _versions():
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from .tables import plain_table

    table = plain_table("package", "version")
    table.add_row("python", platform.python_version())
    for package in PACKAGES:
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "not installed", style="dim")
    return table


def _available_devices() -> list[str]:
    import torch

    return ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]


def _devices():
    import os
    import platform

    import torch

    from fastlr.memory import available_bytes

    from .tables import plain_table

    table = plain_table("device", "what it is", "free memory")
    for name in _available_devices():
        if name == "cpu":
            what = f"{platform.machine()}, {os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads"
        else:
            properties = torch.cuda.get_device_properties(name)
            what = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
        table.add_row(name, what, f"{available_bytes(torch.device(name)) / 2**30:.1f} GiB")
    if not torch.cuda.is_available():
        table.add_row("cuda", "none found" if torch.version.cuda else "this PyTorch is built without CUDA", "")
    return table


def _backends(device: str):
    """Each backend measured, in both float types, or the reason why it cannot serve."""
    import torch
    from rich.text import Text

    from fastlr.backends import BACKENDS, obstacle

    from .tables import plain_table

    table = plain_table("backend", "float32", "float64", "remark", title=f"error against the reference on {device}")
    for name in BACKENDS:
        cells, remarks = [], []
        for dtype in (torch.float32, torch.float64):
            why_not = obstacle(name, device, dtype)
            number, remark = ("-", why_not) if why_not else _measure(name, device, dtype)
            cells.append(number)
            remarks += [remark] if remark and remark not in remarks else []
        table.add_row(name, *cells, Text("; ".join(remarks)))
    return table


def _measure(name: str, device: str, dtype) -> tuple[str, str]:
    """(largest error, "") of a backend, or ("fails", why)."""
    from fastlr.checks.operations import check_backend
    from fastlr.errors import BackendError

    try:
        return f"{max(row.error for row in check_backend(name, device, dtype)):.1e}", ""
    except BackendError as error:
        return "fails", str(error)
    except Exception as error:  # whatever breaks in a backend, the patient wants the rest of the report
        return "fails", f"{type(error).__name__}: {error}"


def _choices(device: str):
    """What "auto" means for each operation."""
    import torch

    from fastlr.backends import resolve

    from .tables import plain_table

    operations = resolve("auto", device, torch.float32)
    table = plain_table("operation", "served by", "remark", title=f"'auto' on {device}: {operations.backend}")
    for row in operations.table():
        table.add_row(*row)
    return table
