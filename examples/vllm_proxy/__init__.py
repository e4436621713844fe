"""A proxy in front of vLLM prefill and decode servers that routes hits by a plan; see README.md."""
