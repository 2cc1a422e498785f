"""Words: from prompts to token ids.

Knows: the tokenizer, prompts, how long one may be.
Does not know: networks, pictures, files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from unstir.condition import Condition
from unstir.conditioning.weights import weighted

PADDING = "[pad]"
MAX_PARTS = 8
"""Parts of ``max_tokens`` in which a long prompt is read at most."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A prompt that was longer than the model reads.

    Args:
        prompt: as it was given.
        read: the part that the model reads.
        tokens: length of the prompt in tokens.
        max_tokens: what the model reads at most.
    """

    prompt: str
    read: str
    tokens: int
    max_tokens: int

    def __str__(self) -> str:
        """One sentence for the user."""
        return (
            f'the prompt has {self.tokens} tokens, the model reads {self.max_tokens}: only "{self.read}" was read '
            f'of "{self.prompt}"'
        )


class WordReader:
    """Prompts to token ids, with a byte-level BPE: every text has tokens, none is unknown.

    Upper case, and the many Unicode forms of one letter, are not told apart.

    Args:
        tokenizer: as trained by ``train`` or read from ``tokenizer.json``.
        max_tokens: longest prompt that the network reads.

    Source: Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2019 (byte level).
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        tokenizer.encode_special_tokens = True  # a prompt that says "[pad]" means the word
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def train(cls, texts: Iterable[str], *, vocabulary: int, max_tokens: int) -> WordReader:
        """A tokenizer made for these texts; the same texts in the same order give the same one.

        Raises:
            ValueError: if ``vocabulary`` cannot hold the padding and the 256 bytes.
        """
        if vocabulary < 257:
            raise ValueError(f"a byte-level vocabulary needs at least 257 entries, got {vocabulary}")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PADDING],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer, max_tokens)

    def ids(self, prompt: str) -> list[int]:
        """The token ids of a prompt, uncut; a single padding token for an empty one."""
        return self.tokenizer.encode(prompt).ids or [0]

    def read(self, prompts: Sequence[str], *, length: int | None = None) -> tuple[Condition, list[Cut]]:
        """The condition that these prompts make, padded to ``max_tokens``, and the prompts that had to be cut.

        Args:
            prompts: one a sample.
            length: pad to this length instead, but never below the longest prompt; the padding has no influence.
        """
        rows = [self.ids(prompt) for prompt in prompts]
        cuts = [
            self._cut(prompt, ids, self.max_tokens)
            for prompt, ids in zip(prompts, rows, strict=True)
            if len(ids) > self.max_tokens
        ]
        rows = [ids[: self.max_tokens] for ids in rows]
        width = self.max_tokens if length is None else max(length, *(len(ids) for ids in rows))
        words = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for row, ids in enumerate(rows):
            words[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = True
        return Condition(words=words, word_mask=mask), cuts

    def read_weighted(self, prompts: Sequence[str], *, num_parts: int = 1) -> tuple[Condition, list[Cut]]:
        """The condition of prompts in the syntax of ``weights``, and the prompts that had to be cut.

        A prompt is tokenized as it would be said plainly, and a token has the weight of its first letter: without
        weights, a prompt that fits is ``read`` to the last bit. A longer one is cut between words into parts of at most
        ``max_tokens``, each padded to that, and the network reads them all, up to ``MAX_PARTS``.

        Args:
            prompts: one a sample.
            num_parts: pad to this number of parts, or to that of the longest prompt if it has more.

        Raises:
            ValueError: if a weight is out of its range.
        """
        size = self.max_tokens
        rows = [self._parts(prompt) for prompt in prompts]
        cuts = [
            self._cut(prompt, [token for part in parts for token, _ in part], sum(map(len, parts[:MAX_PARTS])))
            for prompt, parts in zip(prompts, rows, strict=True)
            if len(parts) > MAX_PARTS
        ]
        rows = [parts[:MAX_PARTS] for parts in rows]
        width = size * max(num_parts, *(len(parts) for parts in rows))
        words = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        weights = torch.ones(len(rows), width)
        for row, parts in enumerate(rows):
            for i, part in enumerate(parts):
                place = slice(size * i, size * i + len(part))
                words[row, place] = torch.tensor([token for token, _ in part])
                mask[row, place] = True
                weights[row, place] = torch.tensor([weight for _, weight in part])
        is_plain = bool((weights == 1).all())
        return Condition(words=words, word_mask=mask, word_weights=None if is_plain else weights), cuts

    def num_parts(self, prompt: str) -> int:
        """The number of parts in which ``read_weighted`` reads a prompt.

        Raises:
            ValueError: if a weight is out of its range.
        """
        return min(len(self._parts(prompt)), MAX_PARTS)

    def _parts(self, prompt: str) -> list[list[tuple[int, float]]]:
        """Tokens and their weights, in parts of at most ``max_tokens`` that are cut between words where possible."""
        pieces = weighted(prompt)
        text = "".join(piece for piece, _ in pieces)
        letters = [weight for piece, weight in pieces for _ in piece]
        encoding = self.tokenizer.encode(text)
        weights = [_weight_of(span, text, letters) for span in encoding.offsets]
        tokens = list(zip(encoding.ids, weights, strict=True))
        parts: list[list[tuple[int, float]]] = [[]]
        for _, together in itertools.groupby(zip(encoding.word_ids, tokens, strict=True), lambda pair: pair[0]):
            word = [token for _, token in together]
            if parts[-1] and len(parts[-1]) + len(word) > self.max_tokens:
                parts.append([])
            for token in word:
                if len(parts[-1]) == self.max_tokens:
                    parts.append([])
                parts[-1].append(token)
        return parts if parts[0] else [[(0, 1.0)]]

    def _cut(self, prompt: str, ids: list[int], read: int) -> Cut:
        return Cut(prompt=prompt, read=self.tokenizer.decode(ids[:read]).strip(), tokens=len(ids), max_tokens=read)


def _weight_of(span: tuple[int, int], text: str, letters: Sequence[float]) -> float:
    """The weight of the first letter from a place of a text on: a space counts with the word that it precedes."""
    return next((letters[i] for i in range(span[0], len(text)) if not text[i].isspace()), 1.0)
