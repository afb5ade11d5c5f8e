"""Trained models at work on people's audio: embeddings, predictions, and what a checkpoint is. Plain PyTorch."""
