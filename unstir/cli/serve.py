"""``unstir serve``: a page and an HTTP API on which anybody who may can draw.

Knows: which models, folders and addresses a server is started with, how its readiness is told.
Does not know: what is answered.
"""

from __future__ import annotations

import contextlib
import json as json_module
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unstir.cli.output import Whole, say
from unstir.cli.runs import hold_of

if TYPE_CHECKING:
    from unstir.pipeline import Pipeline
    from unstir.server.service import Drawer
    from unstir.server.worker import Listener

VARIABLE = "UNSTIR_TOKEN"
_SHORTEST = 12  # characters of a token
_ONE = ("builtin",)
_SWITCH = 0.0005  # seconds after which Python lets another thread in: at 5 ms the worker waits long for every answer


def serve(
    *,
    model: Annotated[Sequence[str], Parameter(negative=())] = _ONE,
    host: str = "127.0.0.1",
    port: Whole = 8000,
    host_name: Annotated[Sequence[str], Parameter(negative=())] = (),
    token: str | None = None,
    token_file: Path | None = None,
    data: Path | None = None,
    runs: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    replicas: Whole | None = None,
    openai_aliases: Annotated[bool, Parameter(negative=())] = False,
    queue: Whole | None = None,
    rate: float = 50.0,
    log_prompts: Annotated[bool, Parameter(negative=())] = False,
    quiet: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Open a page to draw on, and an HTTP API for programs.

    Example: unstir serve --port 8000

    Existing clients of OpenAI's Images API (/v1) and of AUTOMATIC1111 (/sdapi/v1) work unchanged; ours is described at
    /docs. Ctrl-C stops it; jobs that are not finished go on when it is started again.

    Parameters
    ----------
    model
        "builtin", a model folder or a run folder; given again, more of them. Clients know a folder by its last name.
    host
        The address to listen on. Any but this machine's own needs a token.
    port
        0 takes one that is free, and tells which.
    host_name
        A name by which clients reach this server, if it is not its address; given again, more of them.
    token
        What clients must give. Other users of this machine see it in the list of processes: --token-file, or the
        variable UNSTIR_TOKEN, hides it.
    token_file
        A file that holds it.
    data
        Where jobs and pictures are kept; without it ~/.local/share/unstir/serve.
    runs
        A folder of training runs to show on the page.
    device
        auto, cpu, cuda, ...; several joined by commas, such as cuda:0,cuda:1, share the jobs.
    precision
        auto (bf16 on a CPU that multiplies it natively, else float32), float32 or bf16.
    replicas
        So many processes on Ray draw, here or on the cluster of RAY_ADDRESS: pip install 'unstir[ray]'.
    openai_aliases
        Take default, gpt-image-1, dall-e-2 and dall-e-3 for the first model: some clients can ask for no other.
    queue
        Most jobs that may wait.
    rate
        Requests a second that one client may make, on average; 0 for any number.
    log_prompts
        Whether the log on stderr may hold prompts.
    quiet
        Log only what goes wrong.
    json
        Tell of readiness in one line of JSON.
    """
    started = time.perf_counter()
    sys.setswitchinterval(_SWITCH)
    with _extra():
        from unstir.server.guard import Guard
        from unstir.server.listener import LOGGERS, Patience, bind, run
    guard = Guard(token=token_of(token, token_file), host=host, names=tuple(host_name), rate=rate)
    folder = data or default_folder()
    if runs is not None and not runs.is_dir():
        raise NotADirectoryError(f"there is no folder {runs}; --runs takes the folder that run folders are in")
    with bind(host, port) as place, _extra():
        from dataclasses import replace

        from unstir.server.app import create
        from unstir.server.asking import Limits
        from unstir.server.logs import Log
        from unstir.server.openai import ALIASES
        from unstir.server.runs import Runs
        from unstir.server.service import Service

        devices = devices_of(device, replicas)
        make_worker = drawer(model, devices, replicas, precision)
        pipes = opened(model, device=devices[0], precision=precision)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        limits = Limits() if queue is None else replace(Limits(), queue=queue)
        log = Log(has_prompts=log_prompts, has_requests=not quiet)
        app = create(
            Service(pipes, folder, limits=limits, make_worker=make_worker),
            guard=guard,
            runs=None if runs is None else Runs(runs, hold_of),
            log=log,
            aliases=ALIASES if openai_aliases else (),
        )

        def ready(url: str) -> None:
            seconds = round(time.perf_counter() - started, 2)
            if json:
                told = {"ready": url, "models": list(pipes), "device": str(next(iter(pipes.values())).device)}
                print(json_module.dumps({**told, "data": str(folder), "seconds": seconds}), flush=True)
            else:
                print(f"ready: {url} ({', '.join(pipes)}; {seconds} s; Ctrl-C stops it)", flush=True)

        with log.gathered(*LOGGERS):
            run(app, place, ready=ready, ending=app.state.leave, patience=Patience())
    if not json:
        say("stopped")


def opened(models: Sequence[str], *, device: str, precision: str) -> dict[str, Pipeline]:
    """Models by the names that clients know them by, which tell nothing of where they are.

    Raises:
        ValueError: if two have the same name, or as ``load``.
    """
    from unstir.device import one_thread
    from unstir.model import load_model
    from unstir.pipeline import Pipeline, locate_model

    pipes: dict[str, Pipeline] = {}
    for model in models:
        name = model if model == "builtin" else _short(Path(model))
        if name in pipes:
            raise ValueError(f"two models are called {name}; rename one of the folders")
        with one_thread():  # two threads that have ever shared work with helpers slow each other down from then on
            pipes[name] = Pipeline(load_model(locate_model(model)), name=model, device=device, precision=precision)
    return pipes


def devices_of(device: str, replicas: int | None) -> list[str]:
    """The devices that are named.

    Raises:
        ValueError: if one is named twice, or several beside replicas.
    """
    devices = [each.strip() for each in device.split(",")]
    if len(set(devices)) < len(devices):
        raise ValueError(f"each device draws for all jobs that it is given, so name it once, got {device}")
    if replicas is not None and len(devices) > 1:
        raise ValueError("replicas have a device each; give --replicas and one kind of --device, such as cuda")
    return devices


def drawer(
    models: Sequence[str], devices: Sequence[str], replicas: int | None, precision: str
) -> Callable[[Mapping[str, Pipeline], Listener], Drawer] | None:
    """Makes who draws: replicas, or a worker a device; None is one worker.

    Raises:
        ImportError: if replicas are asked for, and Ray is not installed.
        ValueError: if there would be no replica.
    """
    if replicas is not None:
        from unstir.server.replicas import ray_workers

        return ray_workers(replicas, device=devices[0])
    if len(devices) == 1:
        return None

    def side_by_side(pipes: Mapping[str, Pipeline], listener: Listener) -> Drawer:
        from unstir.server.devices import Devices

        others = [opened(models, device=device, precision=precision) for device in devices[1:]]
        return Devices([pipes, *others], listener)

    return side_by_side


def token_of(token: str | None, file: Path | None) -> str:
    """The token: given, in a file, or in UNSTIR_TOKEN; empty if there is none.

    Raises:
        ValueError: if it is given twice, or is easily guessed.
        OSError: if the file cannot be read.
    """
    if token is not None and file is not None:
        raise ValueError("give one of --token and --token-file")
    if file is not None:
        token = file.read_text(encoding="utf-8").strip()
    if token is None:
        token = os.environ.get(VARIABLE)
    if token is None:
        return ""
    if len(token) < _SHORTEST:
        raise ValueError(
            f"a token has at least {_SHORTEST} characters, so that nobody guesses it; for instance the output of "
            "openssl rand -hex 16"
        )
    return token


def default_folder() -> Path:
    """Where a user's jobs and pictures are kept, unless it is said."""
    home = os.environ.get("XDG_DATA_HOME", "")
    # A relative one is to be ignored, says the XDG specification.
    base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "share"
    return base / "unstir" / "serve"


def _short(path: Path) -> str:
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.name


@contextlib.contextmanager
def _extra() -> Generator[None]:
    """Says what to install where a library of the extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _LIBRARIES:
            raise
        raise ImportError(f"a server needs {error.name}, which is not here: pip install 'unstir[serve]'") from error


_LIBRARIES = ("fastapi", "starlette", "uvicorn", "greenlet", "python_multipart", "multipart")
