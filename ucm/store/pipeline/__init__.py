"""``UcmPipelineStore`` under its older import path."""
