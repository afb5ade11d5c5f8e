"""Weights in and out: published checkpoints to this plugin's; this plugin's to timm and ONNX, HEAR and s3prl."""
