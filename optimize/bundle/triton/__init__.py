"""A Triton Inference Server model repository from a finished run."""
