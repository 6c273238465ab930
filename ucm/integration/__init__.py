"""Connectors to inference engines; each folder needs the engine that it is named after."""
