"""Bottlenecks: what stands between encoder and decoder. One idea a file."""
