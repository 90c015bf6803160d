"""Language models of texts: normalised sentences, vocabularies, lexica, n-grams."""
