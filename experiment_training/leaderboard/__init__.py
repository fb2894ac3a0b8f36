"""Leaderboard: policies of this project and of lerobot, trained on the same demonstrations for the same time."""
