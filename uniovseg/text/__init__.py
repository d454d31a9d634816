"""Captions to entities: prompts for language models, strict parsing of their replies, parsers that need no model, and cleaning."""
