"""Tokenisers and vocabularies: natural text in, ids out, and back."""

from shared.text.vocabulary import BOS, EOS, PAD, UNK, Vocabulary, read_vocabulary

__all__ = ["BOS", "EOS", "PAD", "UNK", "Vocabulary", "read_vocabulary"]
