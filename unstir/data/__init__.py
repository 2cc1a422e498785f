"""Pictures with captions: found in a user's folder or built from an emoji font, decoded, and turned into numbers.

Knows: the names that the other rooms may import from here.
Does not know: anything else.
"""

from unstir.data.emoji import EmojiSummary as EmojiSummary
from unstir.data.emoji import build_emoji as build_emoji
from unstir.data.emoji import split_of as split_of
from unstir.data.folder import InFile as InFile
from unstir.data.folder import InParquet as InParquet
from unstir.data.folder import PictureSet as PictureSet
from unstir.data.folder import Record as Record
from unstir.data.folder import Summary as Summary
from unstir.data.folder import check_captions as check_captions
from unstir.data.folder import find_pictures as find_pictures
from unstir.data.folder import summarize as summarize
from unstir.data.transforms import decode as decode
from unstir.data.transforms import load_pictures as load_pictures
from unstir.data.transforms import square as square
from unstir.data.transforms import to_bytes as to_bytes
from unstir.data.transforms import to_unit as to_unit
