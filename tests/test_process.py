"""What fastlr leaves of the process that uses it: all as it was, but for what the README names."""

import subprocess
import sys

CODE = """
import gc, locale, logging, os, random, signal, sys, threading, warnings
import numpy as np
import torch
from ase.build import molecule


def state():
    loggers = [item for item in logging.root.manager.loggerDict.items() if isinstance(item[1], logging.Logger)]
    return {
        "environment": {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"},
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "loggers": {name: (logger.level, len(logger.handlers), logger.propagate) for name, logger in loggers},
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "locale": locale.setlocale(locale.LC_ALL),
        "random numbers": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), os.sched_getaffinity(0)),
        "paths": (list(sys.path), list(sys.meta_path), os.getcwd(), sys.getdlopenflags()),
        "hooks": (sys.excepthook, sys.displayhook, threading.excepthook, sys.getprofile(), sys.gettrace()),
        "numbers": (np.geterr(), np.get_printoptions(), torch.get_default_dtype(), (torch.tensor(1e-40) * 1).item()),
        "garbage": (gc.isenabled(), gc.get_threshold()),
        "precision": (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled),
        "modes": (torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), sys.getrecursionlimit()),
        "umask": (lambda mask: (mask, os.umask(mask)))(os.umask(0))[0],
    }


before = state()
import fastlr

assert state() == before, "import"
potential = fastlr.load("aqueous-xtb")
water = molecule("H2O")
cell = water.copy()
cell.set_cell([4, 4, 4])
cell.pbc = True
potential.predict([water, cell.repeat(4), water])
cell.calc = potential.calculator()
cell.get_forces()
after = state()
assert after.pop("loggers").items() >= before.pop("loggers").items()
assert after == before, [name for name in before if before[name] != after[name]]
"""


def test_a_process_stays_as_it_was():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
