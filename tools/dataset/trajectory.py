"""One trajectory of the plan, whatever its family: a worker's job."""

import json
import zlib
from pathlib import Path

import numpy as np

from .contacts import contact_trajectory
from .distortions import distorted_trajectory
from .dynamics import dynamics_trajectory
from .files import write_atomically
from .salt import salt_trajectory
from .scans import scan_trajectory

# How the frames of a stratum are made, where not by xTB dynamics.
MAKERS = {
    "contact-cell": contact_trajectory,
    "contact-cluster": contact_trajectory,
    "ion-box-salt": salt_trajectory,
    "scaled-cell": distorted_trajectory,
    "scaled-cluster": distorted_trajectory,
    "scaled-scan": scan_trajectory,
}


def run_trajectory(task):
    """Make one trajectory and write it to its file in the work directory (a worker's job)."""
    rng = np.random.default_rng([task["seed"], zlib.crc32(task["stratum"].encode()), task["index"]])
    make = MAKERS.get(task["stratum"], dynamics_trajectory)
    frames, discarded = make(task, rng)
    write_atomically(Path(task["file"]), json.dumps({"frames": frames, "discarded": discarded}).encode())
    return task["name"]
