"""This plugin's models in other people's tools."""
