"""Words: from prompts to token ids.

Knows: the tokenizer, prompts, how long one may be.
Does not know: networks, pictures, files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from unstir.condition import Condition

PADDING = "[pad]"


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
            Cut(
                prompt=prompt,
                read=self.tokenizer.decode(ids[: self.max_tokens]).strip(),
                tokens=len(ids),
                max_tokens=self.max_tokens,
            )
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
