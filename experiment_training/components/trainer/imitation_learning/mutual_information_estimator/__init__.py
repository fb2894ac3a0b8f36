"""Mutual information estimator: what actions tell of observations, and observations of actions."""
