"""Tokenisers and vocabularies: natural text in, ids out, and back."""

from shared.text.vocabulary import BLANK, BOS, EOS, PAD, UNK, Vocabulary, read_vocabulary

__all__ = ["BLANK", "BOS", "EOS", "PAD", "UNK", "Vocabulary", "read_vocabulary"]
