"""Trained models on audio of any kind: embeddings, predictions and reconstructions, without fairseq."""
