"""Weights in and out, and this plugin's models in other people's tools."""
