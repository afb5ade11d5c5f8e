"""Weights in and out: published checkpoints to this plugin's, and this plugin's to timm and ONNX."""
