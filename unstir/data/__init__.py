"""Pictures with captions: found in a user's folder or built from an emoji font, decoded, and turned into numbers.

Knows: the names that the other rooms may import from here.
Does not know: anything else.
"""

from unstir.data.archive import InArchive as InArchive
from unstir.data.archive import InZip as InZip
from unstir.data.aspect import ASPECTS as ASPECTS
from unstir.data.aspect import bucket_of as bucket_of
from unstir.data.aspect import square as square
from unstir.data.describe import choose_pairs as choose_pairs
from unstir.data.describe import describe as describe
from unstir.data.description import Description as Description
from unstir.data.emoji import EmojiSummary as EmojiSummary
from unstir.data.emoji import build_emoji as build_emoji
from unstir.data.emoji import split_of as split_of
from unstir.data.findings import Finding as Finding
from unstir.data.findings import judge as judge
from unstir.data.folder import SOURCES as SOURCES
from unstir.data.folder import check_captions as check_captions
from unstir.data.folder import find_pictures as find_pictures
from unstir.data.records import InFile as InFile
from unstir.data.records import InParquet as InParquet
from unstir.data.records import PictureSet as PictureSet
from unstir.data.records import Record as Record
from unstir.data.summary import Summary as Summary
from unstir.data.summary import summarize as summarize
from unstir.data.transforms import decode as decode
from unstir.data.transforms import load_buckets as load_buckets
from unstir.data.transforms import load_pictures as load_pictures
from unstir.data.transforms import to_bytes as to_bytes
from unstir.data.transforms import to_unit as to_unit
