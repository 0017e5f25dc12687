"""The embedded corpus: scenes of coloured shapes drawn from a grammar of known probabilities, told in two languages."""
