"""The commands, and what becomes of errors."""

import sys
from importlib.util import find_spec
from typing import Annotated

import typer

import fastlr
from fastlr.errors import FastlrError

from .bench import bench
from .doctor import doctor
from .info import info
from .md import md
from .predict import predict
from .profile import profile
from .relax import relax

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130

# typer brings its own copy of click or imports it, depending on its version; this is the class either way
UsageError = typer.BadParameter.__base__

app = typer.Typer(
    name="fastlr",
    help="Equivariant interatomic potentials with charge equilibration: predict, run and relax.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(predict)
app.command()(md)
app.command()(relax)
if find_spec("fastlr.cli.train") is not None:
    from .train import train

    app.command()(train)
app.command()(info)
app.command()(doctor)
app.command()(profile)
app.add_typer(bench)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"fastlr {fastlr.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0: done. 1: done, but a relaxation did not converge. 2: an error the user can act on, as one line on stderr.
    130, 143: interrupted. Any other exception is a defect of fastlr and keeps its traceback.
    """
    from .progress import Stopped

    try:
        code = app(args=argv, prog_name="fastlr", standalone_mode=False) or 0
    except FastlrError as error:
        return _fail(str(error))
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "fastlr"
        return _fail(f"{error.format_message().rstrip('.')} (see '{command} --help')")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this code
        print("interrupted", file=sys.stderr)
    return code


def _fail(message: str) -> int:
    print("error:", " ".join(message.split("\n")), file=sys.stderr)
    return EXIT_ERROR
