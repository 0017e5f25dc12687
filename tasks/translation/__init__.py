"""Translation: sentence in, sentence out; the encoder reads the whole source, the decoder writes with attention."""
