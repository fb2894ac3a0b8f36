"""The quickstart: one task from demonstrations to a policy that works."""
