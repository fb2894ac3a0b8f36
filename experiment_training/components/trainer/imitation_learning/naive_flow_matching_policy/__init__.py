"""Naive flow-matching policy: what the other families are measured against."""
