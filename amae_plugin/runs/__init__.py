"""Runs of ``fairseq-hydra-train`` one after the other, and what is made of them."""
