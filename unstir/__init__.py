"""unstir: prompt-conditioned diffusion models, trained, checked and run.

``unstir.load("builtin").sample("a red heart", n=4, seed=0)`` returns pictures. Every room can be imported on its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unstir.pipeline import Pipeline as Pipeline
    from unstir.pipeline import Request as Request
    from unstir.pipeline import load as load
    from unstir.plugged import plug as plug

__version__ = "0.1.0"
__all__ = ["Pipeline", "Request", "__version__", "load", "plug"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import unstir`` stays fast."""
    if name in ("Pipeline", "Request", "load"):
        from unstir import pipeline

        return getattr(pipeline, name)
    if name == "plug":
        from unstir.plugged import plug

        return plug
    raise AttributeError(f"module 'unstir' has no attribute {name!r}")
