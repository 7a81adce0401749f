"""What is known of models of transformers by the names of their classes. Imports nothing."""

from __future__ import annotations

CHAINS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Decoders that are an embedding, blocks that hand on hidden states only, a norm and a linear head; others scale embeddings or logits, or
pass more on."""
