"""Distributions over tokens: score them, learn them, draw them."""
