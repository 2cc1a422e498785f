"""Codecs: the spaces in which diffusion happens."""

from __future__ import annotations

from unstir.codec.base import Codec as Codec
from unstir.codec.base import Identity as Identity

CODECS: dict[str, type[Identity]] = {"identity": Identity}
