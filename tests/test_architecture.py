"""The rules of the house that neither ruff nor pyright nor import-linter can state."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "unstir"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))
MODULES = [path for path in SOURCES if path.name != "__init__.py"]

# Modules without a test file of their own, and why. These lists may only shrink.
UNTESTED = {
    "typing.py": "types only; pyright reads them",
}
# Value classes that hold more than eight fields; a `...Config` is what a recipe writes and is not counted.
WIDE_VALUES = {"Condition", "Request", "Summary"}
NARROW = 8
# What a room must not mention, anywhere in its sources, not even as part of a word.
FORBIDDEN_WORDS = {
    "nn": ("alpha", "sigma", "snr", "schedule"),
    "diffusion": ("rank", "tokenizer", "caption"),
}
NETWORK_LIBRARIES = ("requests", "urllib.request", "http.client", "socket", "huggingface_hub", "httpx", "aiohttp")
LISTENER = "server/listener.py"  # is called, and calls nobody: it alone may have a socket
HEAVY = ("torch", "transformers", "torchmetrics", "matplotlib", "fastapi", "pyarrow", "torchvision", "diffusers")
PICKLES = {"pickle", "cPickle", "dill", "marshal", "shelve"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name_of)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an expression of names and attributes, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (start := dotted(node.value)):
        return f"{start}.{node.attr}"
    return ""


def imports_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every module or name that is imported anywhere in the file, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@each(MODULES)
def test_every_module_has_its_tests(path: Path) -> None:
    """unstir/a/b.py is tested by tests/a/test_b.py; a verb of the command line may share one file with other verbs."""
    name = name_of(path)
    mirror = ROOT / "tests" / path.relative_to(PACKAGE).with_name(f"test_{path.name.lstrip('_')}")
    if name in UNTESTED:
        assert not mirror.exists(), f"{name} has tests now: take it off the list of exceptions"
        return
    if name.startswith("cli/") and list((ROOT / "tests" / "cli").glob("test_*.py")):
        return
    assert mirror.exists(), f"unstir/{name} needs {mirror.relative_to(ROOT)}"


@pytest.mark.parametrize("name", UNTESTED)
def test_no_exception_outlives_its_module(name: str) -> None:
    assert (PACKAGE / name).exists(), f"unstir/{name} is gone: take it off the list of exceptions"


@each(MODULES)
def test_every_module_says_what_it_knows(path: Path) -> None:
    docstring = ast.get_docstring(tree_of(path)) or ""
    for words in ("Knows:", "Does not know:"):
        assert words in docstring, f"the docstring of unstir/{name_of(path)} does not say {words!r}"


@each([path for room in FORBIDDEN_WORDS for path in SOURCES if name_of(path).startswith(room + "/")])
def test_rooms_do_not_speak_of_what_they_do_not_know(path: Path) -> None:
    words = FORBIDDEN_WORDS[name_of(path).split("/", maxsplit=1)[0]]
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    found = [f"{name_of(path)}:{n}: {word}" for n, line in lines for word in words if word in line.lower()]
    assert not found, "\n".join(found)


@each([path for path in SOURCES if name_of(path).startswith("diffusion/") and path.name != "noise.py"])
def test_the_mathematics_places_nothing_on_devices(path: Path) -> None:
    given = [
        f"{name_of(path)}:{keyword.lineno}"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "device"
    ]
    assert not given, f"device= belongs to diffusion/noise.py alone; use new_tensor, zeros_like and their kind: {given}"


def public_functions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)


@each(SOURCES)
def test_no_public_function_takes_anything_at_all(path: Path) -> None:
    """No **kwargs: what can be given is written down. **settings: Unpack[SomeTypedDict] is written down."""
    taking = []
    for function in public_functions(tree_of(path).body):
        rest = function.args.kwarg
        if rest is not None and not (rest.annotation and "Unpack[" in ast.unparse(rest.annotation)):
            taking.append(f"{name_of(path)}:{function.lineno}: {function.name}(**{rest.arg})")
    assert not taking, "\n".join(taking)


def frozen_dataclasses(tree: ast.Module) -> Iterator[ast.ClassDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and dotted(decorator.func).endswith("dataclass"):
                    settings = {keyword.arg: ast.unparse(keyword.value) for keyword in decorator.keywords}
                    if settings.get("frozen") == "True":
                        yield node


@each(SOURCES)
def test_values_are_small(path: Path) -> None:
    wide = []
    for node in frozen_dataclasses(tree_of(path)):
        parts = [part for part in node.body if isinstance(part, ast.AnnAssign)]
        fields = [part for part in parts if "ClassVar" not in ast.unparse(part.annotation)]
        if len(fields) > NARROW and node.name not in WIDE_VALUES and not node.name.endswith("Config"):
            wide.append(f"{name_of(path)}:{node.lineno}: {node.name} has {len(fields)} fields")
    assert not wide, "\n".join(wide)


def test_registries_are_dict_literals() -> None:
    """A registry is a module's constant that names classes: read it and you know what there is."""
    of_classes = re.compile(r"(dict|Mapping|Final\[dict)\[str, .*(type\[|Callable\[)")
    found, computed = [], []
    for path in SOURCES:
        for node in tree_of(path).body:
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper()):
                continue
            if of_classes.match(ast.unparse(node.annotation)):
                found.append(node.target.id)
                keys = node.value.keys if isinstance(node.value, ast.Dict) else [None]
                if not all(isinstance(key, ast.Constant) for key in keys):
                    computed.append(f"{name_of(path)}:{node.lineno}: {node.target.id}")
    assert {"SCHEDULES", "PARAMETERIZATIONS", "NETWORKS", "SAMPLERS", "CODECS"} <= set(found)
    assert not computed, "\n".join(computed)


@each(SOURCES)
def test_nothing_is_pickled_and_no_text_becomes_code(path: Path) -> None:
    tree, found = tree_of(path), []
    for line, name in imports_of(tree):
        if name.split(".")[0] in PICKLES:
            found.append(f"{name_of(path)}:{line}: import {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in ("torch.load", "torch.save", "eval", "exec", "compile"):
            found.append(f"{name_of(path)}:{node.lineno}: {dotted(node.func)}(")
    assert not found, "\n".join(found)


@each(SOURCES)
def test_nothing_reaches_for_the_network(path: Path) -> None:
    imports, allowed = imports_of(tree_of(path)), ("socket",) if name_of(path) == LISTENER else ()
    libraries = tuple(library for library in NETWORK_LIBRARIES if library not in allowed)
    found = [f"{name_of(path)}:{line}: {name}" for line, name in imports if is_within(name, libraries)]
    assert not found, "\n".join(found)


def test_the_listener_listens_and_calls_nobody() -> None:
    calls = {dotted(node.func) for node in ast.walk(tree_of(PACKAGE / LISTENER)) if isinstance(node, ast.Call)}
    ways_out = ("connect", "connect_ex", "create_connection", "open_connection", "sendto")
    assert not [call for call in calls if call.rsplit(".", 1)[-1] in ways_out]
    assert "place.bind" in calls


@each([path for path in SOURCES if name_of(path) != "training/engine.py"])
def test_only_the_engine_knows_of_other_machines(path: Path) -> None:
    tree = tree_of(path)
    found = [n for n, name in imports_of(tree) if is_within(name, ("torch.distributed", "torch.multiprocessing"))]
    found += [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Attribute) and dotted(n) == "torch.distributed"]
    assert not found, (
        f"torch.distributed belongs to training/engine.py alone: {name_of(path)}, lines {sorted(set(found))}"
    )


@each(SOURCES)
def test_every_suppression_names_its_rule(path: Path) -> None:
    with path.open("rb") as file:
        comments = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    bare = [
        f"{name_of(path)}:{comment.start[0]}: {comment.string}"
        for comment in comments
        if re.search(r"type: ignore|pyright: ignore(?!\[)|noqa(?!: ?[A-Z])", comment.string)
    ]
    assert not bare, "\n".join(bare)


def test_importing_unstir_imports_nothing_heavy() -> None:
    """`unstir --help` must answer at once, so the first import is of unstir alone; torch comes with the first use."""
    code = f"import sys, unstir; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_torchvision_is_not_here() -> None:
    """Beside the CPU build of torch it breaks transformers and torchmetrics at import; nothing here may bring it in."""
    assert importlib.util.find_spec("torchvision") is None


def test_the_rules_see_the_package_that_is_tested() -> None:
    """An installed copy of unstir must not stand in for the sources that these rules read."""
    import unstir

    assert Path(inspect.getfile(unstir)).resolve() == PACKAGE / "__init__.py"
    assert (PACKAGE / "py.typed").exists()


def test_the_version_is_said_twice_and_is_one() -> None:
    import unstir

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert unstir.__version__ == project["version"]
