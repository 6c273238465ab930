"""The connector to vLLM; its address is ``ucm.integration.vllm.ucm_connector``."""
