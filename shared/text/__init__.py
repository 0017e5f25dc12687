"""Tokenisers and vocabularies: natural text in, ids out, and back."""

from shared.text.vocabulary import BOS, EOS, PAD, UNK, Vocabulary

__all__ = ["BOS", "EOS", "PAD", "UNK", "Vocabulary"]
