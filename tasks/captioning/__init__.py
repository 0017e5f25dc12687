"""A picture goes in, a sentence comes out."""
