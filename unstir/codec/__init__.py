"""Codecs: the spaces in which diffusion happens."""

from __future__ import annotations

from unstir.codec.base import Codec as Codec
from unstir.codec.base import Identity as Identity
from unstir.codec.bits import BitPlanes as BitPlanes

CODECS: dict[str, type[Identity] | type[BitPlanes]] = {"identity": Identity, "bits": BitPlanes}
