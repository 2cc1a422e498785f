"""Networks of anybody: a plain module that is given a name, and is trained, saved and loaded by it.

Knows: how a module's own arguments become a configuration, and what is added to it so that it serves as a network.
Does not know: diffusion, files of models. No file can name code: a model stores the name, and whoever runs it the code.
"""

from __future__ import annotations

import copy
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import field, fields, make_dataclass
from functools import lru_cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.nn import NETWORKS
from unstir.nn.embedding import ConditionReader
from unstir.nn.text import TextConfig

VARIABLE = "UNSTIR_PLUG"
"""Environment variable with the path of a Python file that plugs networks in, for commands."""

PLUGGED: dict[str, type[Any]] = {}
"""Configurations of networks that were plugged in, by name; ``plug`` adds to it."""

_MAKERS: dict[type[Any], Callable[..., nn.Module]] = {}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def plug(name: str, network: Callable[..., nn.Module]) -> None:
    """Make a module a network that models can be made of, under a name.

    Its arguments become its settings (``--model.network NAME --model.network.WIDTH 64``), which are saved with a model.

    Args:
        name: what configurations and model folders call it.
        network: a class of modules, or a function that makes one. Each argument has a type that JSON can hold, or a
            default that tells it. Without an argument ``text: TextConfig`` it is told no words, and called as
            ``forward(x, scalar)``; with one as ``forward(x, scalar, condition)``, and condition has ``tokens`` (b n
            text.width), ``token_mask`` (b n) and ``pooled`` (b text.width), made of the words.

    Raises:
        TypeError: if ``network`` makes no module.
        ValueError: if the name is taken, or an argument cannot be a setting.
    """
    if not name.isidentifier():
        raise ValueError(f"a network's name is one word of letters, digits and underscores, got {name!r}")
    if not callable(network) or isinstance(network, nn.Module):
        raise TypeError(f"give a class of modules or a function that makes one, not a {type(network).__name__}")
    if isinstance(network, type) and not issubclass(network, nn.Module):
        raise TypeError(f"{network.__name__} is no class of torch.nn.Module; derive it from that")
    if isinstance(network, type) and network.forward is nn.Module.forward:
        raise ValueError(f"{network.__name__} has no forward; write forward(self, x, scalar)")
    before = _MAKERS.get(PLUGGED[name]) if name in PLUGGED else None
    if name in NETWORKS or (before is not None and _place(before) != _place(network)):
        raise ValueError(f"there is a network {name!r} already; plug yours in under another name")
    config = _config_of(name, network)
    PLUGGED[name] = config
    _MAKERS[config] = network


def _place(network: Callable[..., nn.Module]) -> tuple[str, str]:
    """Where a network was written: a cell of a notebook that is run again plugs the same one in again."""
    return getattr(network, "__module__", ""), getattr(network, "__qualname__", repr(network))


def _config_of(name: str, network: Callable[..., nn.Module]) -> type[Any]:
    """A dataclass of a network's arguments.

    Raises:
        ValueError: if one of them cannot be a setting.
    """
    try:
        parameters = inspect.signature(network, eval_str=True).parameters.values()
    except (NameError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"the arguments of the network {name!r} cannot be read ({error})") from None
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    settings: list[tuple[str, Any, Any]] = []
    for parameter in parameters:
        if parameter.kind in rest:
            continue
        _refuse_unfit(name, parameter)
        default = field()
        if parameter.default is not inspect.Parameter.empty:
            default = field(default_factory=partial(copy.deepcopy, parameter.default))
        settings.append((parameter.name, _type_of(name, parameter), default))
    config = make_dataclass(f"{name}_config", settings, frozen=True, kw_only=True)
    try:
        TypeAdapter(config).json_schema()
    except PydanticUserError:
        kinds = ", ".join(f"{own}: {getattr(kind, '__name__', kind)}" for own, kind, _ in settings)
        raise ValueError(
            f"settings of a network are numbers, words, and lists or dataclasses of them; {name!r} has {kinds}"
        ) from None
    return config


def _refuse_unfit(name: str, parameter: inspect.Parameter) -> None:
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise ValueError(
            f"the network {name!r} is made with its settings by name, and {parameter.name} has none to give"
        )
    if parameter.name == "kind" or parameter.name.startswith("_"):
        raise ValueError(f"no setting of a network can be called {parameter.name!r}; rename the argument of {name!r}")


def _type_of(name: str, parameter: inspect.Parameter) -> Any:
    """The type of a setting: as it is written, else that of the default."""
    kind: Any = parameter.annotation
    if kind is inspect.Parameter.empty:
        kind = cast(Any, type(parameter.default))
        if parameter.default is inspect.Parameter.empty or parameter.default is None:
            raise ValueError(f"what type has {parameter.name} of the network {name!r}? write {parameter.name}: int")
    if parameter.name == "text" and kind not in (TextConfig, TextConfig | None):
        raise ValueError(
            f"the setting text is the shape of what reads the words; write text: TextConfig, or rename it in {name!r}"
        )
    return kind


class Plugged(nn.Module):
    """A plain module as a network: what networks are asked for beside ``forward`` is added here.

    A module that says ``multiple`` (an int) draws every size whose sides are multiples of it; any other draws one size.

    Args:
        config: of a class in ``PLUGGED``.
        in_channels: of x, as the model needs them.
        out_channels: of the output, likewise.
        side: height and width of x.

    Raises:
        TypeError: if what was plugged in makes no module.
        ValueError: if it cannot be made, or is none that can be trained here.
    """

    def __init__(self, config: Any, in_channels: int, out_channels: int, side: int) -> None:
        super().__init__()
        self.config = config
        self.name = next(name for name, kind in PLUGGED.items() if kind is type(config))
        self.in_channels, self.out_channels, self.side = in_channels, out_channels, side
        text: TextConfig | None = getattr(config, "text", None)
        self.reader = None if text is None else ConditionReader(text)
        self.module = self._made()
        multiple: object = getattr(self.module, "multiple", None)
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            raise ValueError(
                f"the network {self.name!r} should say a number of pixels as its multiple, got {multiple!r}"
            )
        self.multiple, self.is_one_size = side if multiple is None else multiple, multiple is None

    def _made(self) -> nn.Module:
        settings = {own.name: getattr(self.config, own.name) for own in fields(self.config)}
        try:
            module = cast(object, _MAKERS[type(self.config)](**settings))
        except Exception as error:  # whatever a stranger's constructor does
            raise ValueError(f"the network {self.name!r} cannot be made ({_said(error)})") from error
        if not isinstance(module, nn.Module):
            raise TypeError(f"the network {self.name!r} makes a {type(module).__name__}, expected a torch.nn.Module")
        norm = next((part for part in module.modules() if isinstance(part, _BATCH_NORMS)), None)
        if norm is not None:
            raise ValueError(
                f"the network {self.name!r} has a {type(norm).__name__}, with which a picture would depend on those "
                "drawn beside it; take GroupNorm"
            )
        names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
        if len(names) != len(dict(module.named_parameters())) or not names:
            problem = "the same weight under two names; give each a weight of its own" if names else "no weights"
            raise ValueError(f"the network {self.name!r} has {problem}")
        return module

    def read(self, condition: Condition) -> Condition:
        """The condition with its words read, where the module is told any."""
        return condition if self.reader is None else self.reader(condition)

    def forward(
        self, x: Float[Tensor, "b c h w"], scalar: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b k h w"]:
        """What the module makes of x."""
        if self.reader is None:
            return self.module(x, scalar)
        return self.module(x, scalar, self.read(condition))

    def try_on(self) -> None:
        """Ask the module once, about noise: so that what does not fit is told at once.

        Raises:
            ValueError: if it fails, or its output is not of the shape that the model needs.
        """
        once = torch.Generator().manual_seed(0)  # nobody else's numbers are drawn from
        x = torch.randn(2, self.in_channels, self.side, self.side, generator=once)
        words = torch.zeros(2, 1, dtype=torch.long)
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                told: object = self(x, torch.tensor([1.0, 2.0]), Condition(words=words, word_mask=words == 0))
        except Exception as error:  # whatever a stranger's module does
            way = "forward(x, scalar)" if self.reader is None else "forward(x, scalar, condition)"
            raise ValueError(
                f"the network {self.name!r} cannot be called as {way} with x of shape {tuple(x.shape)} ({_said(error)})"
            ) from error
        finally:
            self.train(was_training)
        wanted = (2, self.out_channels, self.side, self.side)
        if not isinstance(told, Tensor) or tuple(told.shape) != wanted:
            got = f"shape {tuple(told.shape)}" if isinstance(told, Tensor) else f"a {type(told).__name__}"
            raise ValueError(
                f"the network {self.name!r} must give a tensor of shape {wanted} for x of shape {tuple(x.shape)}, "
                f"got {got}"
            )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def is_plugged(config: object) -> bool:
    """Whether a network's configuration is that of one that was plugged in."""
    return type(config) in PLUGGED.values()


def plug_from_environment() -> None:
    """Run the file that ``UNSTIR_PLUG`` names, once a process, so that it plugs its networks in.

    Raises:
        ValueError: if there is no such file, it fails, or it plugs nothing in.
    """
    path = os.environ.get(VARIABLE, "")
    if path:
        _run_once(Path(path).resolve())


@lru_cache
def _run_once(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{VARIABLE} names {path}, where there is no file; give one that calls unstir.plug")
    known = set(PLUGGED.items())
    spec = spec_from_file_location(f"unstir_plug_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{VARIABLE} names {path}, which is no Python file; give one that calls unstir.plug")
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent))  # as python FILE does, so that it finds what lies beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever stands in a stranger's file
        sys.modules.pop(module.__name__, None)
        raise ValueError(f"{path}, which {VARIABLE} names, cannot be run ({_said(error)})") from error
    finally:
        sys.path.remove(str(path.parent))
    if set(PLUGGED.items()) == known:
        raise ValueError(f'{path}, which {VARIABLE} names, plugs nothing in; let it call unstir.plug("a_name", Module)')
