"""A tiny LLaVA with random weights behind two servers of the `transformers` package: the stock one, and one that honours JSON schemas.

python -m tests.runtime.llm_server FOLDER STOCK_PORT SCHEMA_PORT
"""

import contextvars
import json
import sys
from pathlib import Path
from typing import Any

IMAGE, PATCH = 56, 14
SPECIALS = ["<pad>", "<s>", "</s>", "<image>", "<|user|>", "<|assistant|>", "<|system|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build(folder: Path) -> None:
    """Write model, tokenizer and processor into a folder: 80 thousand weights, a tokenizer that can encode any text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    bytes_of_text = Tokenizer(models.BPE())
    bytes_of_text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_of_text.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIALS, show_progress=False, initial_alphabet=alphabet)
    bytes_of_text.train_from_iterator(["a red star on sand", "a dog and a cat"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_of_text, bos_token="<s>", eos_token="</s>", pad_token="<pad>", extra_special_tokens={"image_token": "<image>"}
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE})
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    torch.manual_seed(0)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in (("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>"), ("image", "<image>"))}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=IMAGE, patch_size=PATCH, projection_dim=32),
        text_config=LlamaConfig(**sizes, vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=4096, **special),
        image_token_index=ids["image"],
        image_seq_length=(IMAGE // PATCH) ** 2,
        vision_feature_layer=-2,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for name, value in special.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def honour_schemas() -> None:
    """From here on a new server constrains what it generates to the request's JSON schema."""
    import xgrammar
    from transformers.cli.serving import chat_completion
    from xgrammar.contrib.hf import LogitsProcessor

    schema: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("schema", default=None)
    compilers: list[Any] = []

    class Handler(chat_completion.ChatCompletionHandler):  # type: ignore[misc]
        _unused_fields = chat_completion.UNUSED_CHAT_COMPLETION_FIELDS - {"response_format"}

        async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
            schema.set(body.get("response_format", {}).get("json_schema", {}).get("schema"))
            return await super().handle_request(body, request_id)

        async def _non_streaming(self, request_id: str, model: Any, processor: Any, model_id: str, inputs: Any, *rest: Any, **named: Any) -> Any:
            wanted = schema.get()
            if wanted is not None:
                if not compilers:
                    vocabulary = xgrammar.TokenizerInfo.from_huggingface(
                        processor.tokenizer,
                        vocab_size=model.config.get_text_config().vocab_size,
                        stop_token_ids=[processor.tokenizer.eos_token_id],
                    )
                    compilers.append(xgrammar.GrammarCompiler(vocabulary))
                grammar = compilers[0].compile_json_schema(json.dumps(wanted), any_whitespace=False)
                inputs = {**inputs, "logits_processor": [LogitsProcessor(grammar)]}
            return await super()._non_streaming(request_id, model, processor, model_id, inputs, *rest, **named)

    chat_completion.ChatCompletionHandler = Handler


def main(folder: str, stock_port: str, schema_port: str) -> None:
    """Build the model, then serve it on both ports until killed."""
    build(Path(folder))
    from transformers.cli.serve import Serve

    settings = {"force_model": folder, "device": "cpu", "dtype": "float32", "host": "127.0.0.1"}
    Serve(**settings, port=int(stock_port), non_blocking=True)
    honour_schemas()
    Serve(**settings, port=int(schema_port), non_blocking=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
