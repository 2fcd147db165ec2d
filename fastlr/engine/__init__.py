"""A trained model at work: what is reused from one evaluation to the next."""
