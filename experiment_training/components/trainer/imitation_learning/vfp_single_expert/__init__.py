"""A variational flow policy with a single expert."""
