"""The older import paths, thin over ``ucm``."""
