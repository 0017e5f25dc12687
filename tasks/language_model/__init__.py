"""Language model: text in, the probability of every next token out; it scores a text, writes one, and fills gaps."""
