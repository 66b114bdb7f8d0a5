"""Accuracy, throughput, metrics, attribution, gates."""
