"""YAML to a typed, frozen Recipe."""
