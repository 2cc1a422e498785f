"""The whole command line: its verbs and options, frozen; what becomes of mistakes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from unstir import __version__
from unstir.cli import app as module
from unstir.cli.app import app, main
from unstir.speedups import is_on

# Every option of every verb. Adding one edits this list, in sight of whoever reads the change.
OPTIONS = {
    "sample": (
        "PROMPTS --model -n --number --seed --steps --sampler --guidance --guidance.interval --guidance.method "
        "--guidance.rescale --guidance.view --guidance.threshold --guidance.weak --guidance.classifier "
        "--guidance.classifier-scale --negative --prompt-syntax --size --tile --grid "
        "--eta --within -o --output --batch --device --precision --metadata --no-metadata --json"
    ),
    "generate": (
        "--prompts -o --output --model -n --number --seed --size --tile --steps --sampler --grid --eta --guidance "
        "--guidance.interval --guidance.method --guidance.rescale --guidance.view --guidance.threshold "
        "--guidance.weak --guidance.classifier --guidance.classifier-scale --negative --prompt-syntax --batch "
        "--device --precision --ray --workers --json"
    ),
    "edit": (
        "--picture --prompt --mask --strength --extend --resample --fit --size -n --number --variations --between "
        "--to-prompt --frames --seed --tile --steps --sampler --guidance --guidance.interval --guidance.method "
        "--guidance.rescale --guidance.view --guidance.threshold --guidance.weak --guidance.classifier "
        "--guidance.classifier-scale --negative --prompt-syntax --grid --eta --within --model -o --output --batch --device "
        "--precision --metadata --no-metadata --json"
    ),
    "serve": (
        "--model --host --port --host-name --token --token-file --data --runs --device --precision --replicas "
        "--openai-aliases --queue --rate --log-prompts --quiet --json"
    ),
    "redo": "--picture -o --output --model --source --mask --between --device --json",
    "check": (
        "--data --recipe --captions --codec --images --batch --set --seed --measure --no-measure --overfit --no-overfit "
        "--device --json"
    ),
    "watch": "--run --once --every --json",
    "train": (
        "--recipe --data --out --resume --from --codec --images --batch --seed --checkpoint-every --captions "
        "--aspect --max-broken --allow-missing-captions --set --device --json"
    ),
    "evaluate": (
        "--model --data --metrics --split --keywords --prompts --seeds --seed --limit --steps --sampler --grid "
        "--guidance --batch --draws --sheet --captions --device --precision --json"
    ),
    "reproduce": "--name -o --output --seed --json",
    "tune": "--model --steps --prompts --starts --iterations --guidance --seed --device --json",
    "inspect": "--path --json",
    "verify": "--target --only --json",
    "data emoji": "--directory --size --language --json",
    "data describe": "--directory --size --seed --limit --captions --sheet --json",
    "bench solvers": "--dimensions --calls --starts --seed --schedule --quick --plot --json",
    "bench sample": "--quick --json",
    "bench train": "--models --batch --repeats --device --compiled --levers --quick --json",
    "bench server": "--model --clients --seconds --mixed --device --quick --json",
}

Call = Callable[..., tuple[int, str, str]]


def verbs() -> set[str]:
    found = set()
    for name in app:
        if name.startswith("-"):
            continue
        inner = [sub for sub in app[name] if not sub.startswith("-")]
        found |= {f"{name} {sub}" for sub in inner} or {name}
    return found


def test_the_verbs_are_these() -> None:
    assert verbs() == set(OPTIONS)


@pytest.mark.parametrize("verb", OPTIONS)
def test_the_options_are_these(verb: str) -> None:
    place = app
    for part in verb.split():
        place = place[part]
    names = [name for argument in place.assemble_argument_collection() for name in argument.names if name != "*"]
    assert sorted(names) == sorted(OPTIONS[verb].split())


@pytest.mark.parametrize("verb", [*OPTIONS, "data", "bench"])
def test_help_explains_with_an_example(call: Call, verb: str) -> None:
    status, out, err = call(*verb.split(), "--help")
    assert (status, err) == (0, "")
    assert f"Example: unstir {verb}" in " ".join(out.split())
    for option in OPTIONS.get(verb, "").split():
        assert option.lower() in out.lower()


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_names_every_verb(call: Call, arguments: list[str]) -> None:
    status, out, _ = call(*arguments)
    assert status == 0
    assert all(verb.split()[0] in out for verb in OPTIONS)


def test_the_version_is_the_packages(call: Call) -> None:
    assert call("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["smple", "x"],
        ["nonsense"],
        ["--nonsense"],
        ["sample", "x", "--colour", "red"],
        ["sample", "x", "--steps"],
        ["sample", "x", "--steps", "many"],
        ["sample", "x", "--seed", "abc"],
        ["generate"],
        ["generate", "x.txt"],
        ["generate", "x.txt", "-o", "y", "--workers", "many"],
        ["redo"],
        ["redo", "a.png", "b.png"],
        ["train", "tiny", "extra"],
        ["train", "--training", "4"],
        ["train", "tiny", "--training.batch"],
        ["train", "tiny", "--set"],
        ["evaluate", "builtin"],
        ["inspect", "a", "b"],
        ["data"],
        ["data", "kittens", "x"],
        ["data", "emoji"],
        ["data", "emoji", "x", "--size", "big"],
        ["data", "describe"],
        ["data", "describe", "x", "--size", "2.5"],
        ["bench"],
        ["bench", "kittens"],
        ["bench", "solvers", "--starts", "2.5"],
        ["bench", "sample", "extra"],
        ["bench", "train", "--batch", "many"],
        ["check"],
        ["check", "x", "tiny", "extra"],
        ["watch"],
        ["watch", "x", "--every", "soon"],
        ["serve", "extra"],
        ["serve", "--port", "http"],
        ["serve", "--queue", "1.5"],
    ],
    ids=" ".join,
)
def test_words_that_the_command_line_does_not_know(call: Call, tmp_path, monkeypatch, arguments: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = call(*arguments)
    if arguments in (["data"], ["bench"]):  # a verb of verbs shows its help
        assert status == 0
        return
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_verb_that_is_nearly_one_is_suggested(call: Call) -> None:
    assert "sample" in call("smple", "x")[2]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("two\nlines  here"), 2, "unstir: two lines here"),
        (TypeError("kind"), 2, "unstir: kind"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), 2, "unstir: x.png: no such file or directory"),
        (NotADirectoryError(20, "Not a directory", "x"), 2, "unstir: x: not a directory"),
        (FileExistsError("there already"), 2, "unstir: there already"),
        (PermissionError(13, "Permission denied", "x"), 1, "unstir: x: permission denied"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (ArithmeticError("not finite"), 1, "unstir: not finite"),
        (MemoryError(), 1, "unstir: MemoryError"),
        (ImportError("no torch"), 1, "unstir: no torch"),
        (KeyboardInterrupt(), 130, "unstir: interrupted"),
        (RuntimeError("deep"), 1, "this is a bug in unstir (RuntimeError: deep)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_failure_is_one_sentence(call: Call, monkeypatch, error: BaseException, status: int, words: str) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.delenv("UNSTIR_TRACEBACK", raising=False)
    monkeypatch.setattr(module, "app", fail)
    found, out, err = call("sample", "x")
    assert (found, out) == (status, "")
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_the_traceback_is_there_for_who_asks(call: Call, monkeypatch) -> None:
    monkeypatch.setenv("UNSTIR_TRACEBACK", "1")
    err = call("inspect", "/no/such/thing")[2]
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("unstir: ")


def test_main_leaves_with_the_status() -> None:
    with pytest.raises(SystemExit) as left:
        main(["nonsense"])
    assert left.value.code == 2


def test_as_a_process_mistakes_are_told_without_torch() -> None:
    """The real thing once: exit status, stdout, stderr, and no two seconds of waiting for a misspelt option."""
    code = "import sys; from unstir.cli import main; main_ = main\ntry:\n    main(['sample', 'x', '--colour', 'red'])\n"
    code += "finally:\n    assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("unstir: ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_error() -> None:
    """As in ``unstir --help | head -1``."""
    code = "from unstir.cli import main; main(['sample', '--help'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) in (0, 1)
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_speed_ups_are_switched_off_by_their_names(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a verb runs, and no longer; an unknown name is refused."""
    seen: list[bool] = []
    monkeypatch.setattr("unstir.cli.app.app", lambda *arguments, **options: seen.append(is_on("joined_average")))
    monkeypatch.setenv("UNSTIR_WITHOUT", "bf16, joined_average")
    assert call("verify")[0] == 0
    assert seen == [False]
    assert is_on("joined_average")
    monkeypatch.setenv("UNSTIR_WITHOUT", "warp")
    status, _, err = call("verify")
    assert status == 2
    assert err.startswith("unstir: no speed-up 'warp'; there are bf16, ")
