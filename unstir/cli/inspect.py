"""``unstir inspect``: what a file or folder is.

Knows: which kinds of things unstir makes and reads.
Does not know: how they are made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from cyclopts import Parameter

from unstir.cli.output import print_json

_SETS = (".parquet", ".tar", ".zip")


def inspect(
    path: str = "builtin",
    *,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Tell what a model, a run, a picture or a set of pictures is.

    Example: unstir inspect builtin

    Parameters
    ----------
    path
        "builtin", a model or run folder, a picture that unstir drew, a safetensors file, or a set of
        pictures: a folder, a .zip, .tar or .parquet file.
    json
        Print one JSON object instead of text.
    """
    found = describe(path)
    if json:
        print_json(found)
        return
    for line in _lines(found):
        print(line)


def describe(name: str) -> dict[str, Any]:
    """What is at a path, as a dictionary whose ``kind`` says what kind of thing it is.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is nothing that unstir knows.
    """
    from unstir.pipeline import locate_model

    path = Path(name)
    if (locate_model(name) / "unstir.json").exists():
        return _model(locate_model(name), path)
    if not path.exists() and path.suffix != ".tar":  # a list of shards, x-{000..009}.tar, is no file
        raise FileNotFoundError(
            f"there is nothing at {name}; give builtin, a model, a run, a picture or a set of pictures"
        )
    if path.is_file() and path.suffix.lower() == ".safetensors":
        return _tensors(path)
    if path.is_file() and path.suffix.lower() not in _SETS:
        from unstir.config import to_dict
        from unstir.metadata import read_recipe

        return {"kind": "picture", "path": str(path), **to_dict(read_recipe(path))}
    if (path / "run.json").exists():
        return _run(path)
    from unstir.data.folder import find_pictures, summarize

    summary = summarize(find_pictures(path))
    return {"kind": "pictures", "path": str(path), "summary": summary.lines()}


def _model(folder: Path, path: Path) -> dict[str, Any]:
    from unstir.config import to_dict
    from unstir.model import load_model

    model = load_model(folder)
    run = _run(path) if (path / "run.json").exists() else {}
    return {
        "kind": "run" if run else "model",
        "path": str(folder),
        "parameters": model.num_parameters,
        "checksum": model.checksum,
        **to_dict(model.config),
        "training": model.training,
        "taught": list(model.taught),
        **({"run": run} if run else {}),
    }


def _run(path: Path) -> dict[str, Any]:
    from unstir.training.checkpoint import newest_whole
    from unstir.training.run import read_run

    config, fingerprint = read_run(path)
    checkpoint = newest_whole(path / "checkpoints")
    return {
        "kind": "run",
        "path": str(path),
        "recipe": config.recipe,
        "data": config.data,
        "fingerprint": fingerprint,
        "images_seen": int(checkpoint.name) if checkpoint else 0,
        "planned_images": config.training.images,
    }


def _tensors(path: Path) -> dict[str, Any]:
    from unstir.model import read_tensors

    tensors = read_tensors(path)
    return {
        "kind": "safetensors",
        "path": str(path),
        "tensors": {
            name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in tensors.items()
        },
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
    }


def _lines(found: Any, indent: str = "") -> list[str]:
    lines: list[str] = []
    for key, value in found.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], str):
            lines += [f"{indent}{key}:", *(f"{indent}  {item}" for item in cast("list[str]", value))]
        else:
            lines.append(f"{indent}{key}: {value}")
    return lines
