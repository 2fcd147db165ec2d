"""Files that survive an interruption: whole or not there, and continued only with the same settings."""

import importlib.metadata
import json
import os

FORMAT_VERSION = 1


def write_atomically(path, data):
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_work_directory(args):
    """Make sure that the work directory holds trajectories of the same settings."""
    settings = {
        "format": FORMAT_VERSION,
        "seed": args.seed,
        "frames": args.frames,
        "equilibration": args.equilibration,
        "tblite": importlib.metadata.version("tblite"),
    }
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / "settings.json"
    if not path.exists():
        write_atomically(path, json.dumps(settings).encode())
    elif json.loads(path.read_text(encoding="utf-8")) != settings:
        raise SystemExit(f"make_dataset: {args.work} holds trajectories of other settings; choose another --work")
