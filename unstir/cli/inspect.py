"""``unstir inspect``: what a file or folder is.

Knows: which kinds of things unstir makes and reads.
Does not know: how they are made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from cyclopts import Parameter

from unstir.cli.output import print_json
from unstir.cli.train_classifier import reader_asked_for

_SETS = (".parquet", ".tar", ".zip")


def inspect(
    path: str = "builtin",
    *,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Tell what a model, a classifier, a codec, a run, a picture or a set of pictures is.

    Example: unstir inspect builtin

    Parameters
    ----------
    path
        "builtin", the folder of a model, a classifier, a codec or a run, a picture that unstir drew, a safetensors
        file, or a set of pictures: a folder, a .zip, .tar or .parquet file.
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
        return _folder(locate_model(name), path)
    if not path.exists() and path.suffix != ".tar":  # a list of shards, x-{000..009}.tar, is no file
        raise FileNotFoundError(
            f"there is nothing at {name}; give builtin, a model, a classifier, a codec, a run, a picture or a set of "
            "pictures"
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


def _folder(folder: Path, path: Path) -> dict[str, Any]:
    """A folder with an ``unstir.json``, and the run that it belongs to where that is what was asked for."""
    from unstir.config import read_json_file

    tell = {"classifier": _classifier, "codec": _codec}.get(_kind(read_json_file(folder / "unstir.json")), _model)
    found, run = tell(folder), _run(path) if (path / "run.json").exists() else {}
    return {**found, **({"kind": "run", "makes": found["kind"], "run": run} if run else {})}


def _kind(description: dict[str, Any]) -> str:
    return str(description.get("kind", "model"))


def _model(folder: Path) -> dict[str, Any]:
    from unstir.config import to_dict
    from unstir.model import load_model

    model = load_model(folder)
    count = _weights_of(model.codec)
    return {
        "kind": "model",
        "path": str(folder),
        "parameters": model.num_parameters,
        **({"codec_parameters": count} if count else {}),
        "checksum": model.checksum,
        **to_dict(model.config),
        "training": model.training,
        "taught": list(model.taught),
    }


def _codec(folder: Path) -> dict[str, Any]:
    from unstir.config import to_dict
    from unstir.model import CodecConfig, load_codec, read_description

    codec, written = load_codec(folder), read_description(folder, "codec", CodecConfig)
    return {
        "kind": "codec",
        "path": str(folder),
        "parameters": _weights_of(codec),
        "checksum": written.checksum,
        "downsampling": codec.downsampling,
        "latent_channels": codec.latent_channels,
        **to_dict(written.config),
        "training": written.training,
    }


def _classifier(folder: Path) -> dict[str, Any]:
    from unstir.classifier import load_classifier
    from unstir.config import to_dict

    classifier = load_classifier(folder)
    return {
        "kind": "classifier",
        "path": str(folder),
        "parameters": _weights_of(classifier.network),
        "checksum": classifier.checksum,
        **to_dict(classifier.config),
        "training": classifier.training,
    }


def _weights_of(part: Any) -> int:
    """The number of weights of a module; of what is none, 0."""
    from torch import nn

    return sum(weight.numel() for weight in part.parameters()) if isinstance(part, nn.Module) else 0


def _read_run(path: Path) -> tuple[Any, str]:
    """The configuration of a run of any kind, and the fingerprint of its data."""
    kind = reader_asked_for(None, path, resume=True)
    if kind == "codec":
        from unstir.training.codec import read_codec_run

        return read_codec_run(path / "run.json")
    if kind == "classifier":
        from unstir.training.classifier import read_classifier_run

        return read_classifier_run(path / "run.json")
    from unstir.training.run import read_run

    return read_run(path)


def _run(path: Path) -> dict[str, Any]:
    from unstir.training.checkpoint import newest_whole

    config, fingerprint = _read_run(path)
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
