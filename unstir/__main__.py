"""``python -m unstir``: the command, for whoever starts a module, as torchrun does.

Knows: where the command is.
Does not know: any verb.
"""

from __future__ import annotations

from unstir.cli import main

if __name__ == "__main__":
    main()
