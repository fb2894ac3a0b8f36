"""Architectures, as YAML: <family>/<experiment>/<component>.yaml."""
