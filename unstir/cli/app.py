"""The command ``unstir``: verbs, and what becomes of mistakes.

Knows: which verb lives where, exit statuses, how an error is told in one sentence.
Does not know: what any verb does.

Exit status 0: done; 1: failed; 2: bad input; 130 and 143: interrupted.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from unstir import __version__
from unstir.allocator import keep_memory
from unstir.cli.bench import bench_app
from unstir.cli.check import check
from unstir.cli.data import data_app
from unstir.cli.edit import edit
from unstir.cli.evaluate import evaluate
from unstir.cli.generate import generate
from unstir.cli.inspect import inspect
from unstir.cli.redo import redo
from unstir.cli.reproduce import reproduce
from unstir.cli.sample import sample
from unstir.cli.serve import serve
from unstir.cli.train import as_settings, train
from unstir.cli.tune import tune
from unstir.cli.verify import verify
from unstir.cli.watch import watch
from unstir.speedups import VARIABLE, named, without

app = App(
    name="unstir",
    help='From a folder of captioned pictures to a picture from a prompt. Example: unstir sample "a red heart"',
    version=__version__,
    help_format="plaintext",
)
for verb in (sample, generate, edit, redo, serve, check, train, watch, evaluate, reproduce, tune, inspect, verify):
    app.command(verb)
app.command(data_app)
app.command(bench_app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb and leave with its exit status; a mistake gets one sentence on stderr, never a traceback.

    ``UNSTIR_TRACEBACK=1`` shows the traceback as well.
    """
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """The exit status of a verb."""
    try:
        if arguments[:1] in (["train"], ["check"]):
            arguments = as_settings(arguments)
        with without(*named(os.environ.get(VARIABLE, ""))):
            keep_memory()
            _plug_in()
            status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except CycloptsError as error:
        return _tell(2, f"{_one_sentence(str(error))} (see unstir {_verb(arguments)}--help)", error)
    except BrokenPipeError:
        # The reader of our output left (as ``head`` does); nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _tell(130, "interrupted", None)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        return _tell(2, _os_sentence(error), error)
    except OSError as error:
        return _tell(1, _os_sentence(error), error)
    except (ValueError, TypeError) as error:
        return _tell(2, str(error), error)
    except (ArithmeticError, MemoryError, ImportError) as error:
        return _tell(1, str(error) or type(error).__name__, error)
    except Exception as error:
        return _tell(1, _unforeseen(error), error)


def _plug_in() -> None:
    """Run the user's file that plugs networks in, where one is named; nobody else waits for torch here."""
    if os.environ.get("UNSTIR_PLUG"):
        from unstir.plugged import plug_from_environment

        plug_from_environment()


def _unforeseen(error: Exception) -> str:
    # Where torch has no memory left it says so by a class of its own on GPUs, on a CPU by a text.
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return (
            "the memory does not take it; give a smaller --batch (for training also --batch auto, which sees it in "
            "parts), smaller pictures or a smaller network"
        )
    return f"this is a bug in unstir ({type(error).__name__}: {error}); UNSTIR_TRACEBACK=1 shows where"


def _tell(status: int, sentence: str, error: BaseException | None) -> int:
    if error is not None and os.environ.get("UNSTIR_TRACEBACK"):
        traceback.print_exception(error)
    print(f"unstir: {_one_sentence(sentence)}", file=sys.stderr)
    return status


def _os_sentence(error: OSError) -> str:
    if error.strerror and error.filename:
        return f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    return str(error)


def _one_sentence(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _verb(arguments: Sequence[str]) -> str:
    return f"{arguments[0]} " if arguments and not arguments[0].startswith("-") else ""
