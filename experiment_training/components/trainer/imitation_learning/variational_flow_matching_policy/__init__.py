"""Variational flow-matching policy."""
