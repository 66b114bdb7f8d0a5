"""What is handed over: manifest, archive, Triton model repository."""
