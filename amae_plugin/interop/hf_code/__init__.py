"""The code in an exported folder of Hugging Face's form; each file is copied as it is."""
