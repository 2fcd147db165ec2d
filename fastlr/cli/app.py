"""The commands, and what becomes of errors."""

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
from .streams import can_print, flushed, not_printed, say, usable_streams

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
    130, 141, 143: ended by Ctrl-C, by a reader that closed its output, by SIGTERM. Any other exception is a defect of
    fastlr and keeps its traceback.

    No command writes over a file that exists unless it is told to (--overwrite), nor ever over one that it reads; an
    output that cannot be written is refused before the work, and appears under its name when it is complete.
    """
    with usable_streams():
        return flushed(_run(argv))


def _run(argv: list[str] | None) -> int:
    from .progress import Stopped

    try:
        code = app(args=argv, prog_name="fastlr", standalone_mode=False) or 0
    except FastlrError as error:
        return _fail(str(error))
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "fastlr"
        return _fail(f"{error.format_message().rstrip('.') or 'Missing command'} (see '{command} --help')")
    except Stopped as stopped:
        say(str(stopped))
        return stopped.exit_code
    except Warning as warning:  # which the user has Python turn into errors
        return _fail(str(warning))
    except OSError as error:
        if error.filename is None and not can_print():
            return not_printed(error)
        return _fail(f"{error.filename}: " * bool(error.filename) + f"{error.strerror or error}")
    except SystemExit as ended:  # by a signal; and typer ends a command whose output is closed in this way
        if isinstance(ended.__context__, BrokenPipeError):
            return not_printed(ended.__context__)
        return ended.code
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this code
        say("interrupted")
    return code


def _fail(message: str) -> int:
    say(f"error: {message}")
    return EXIT_ERROR
