"""Evaluation of trained models on whole splits, and results of several runs."""
