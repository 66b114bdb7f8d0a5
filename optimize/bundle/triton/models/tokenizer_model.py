"""Text to token ids with Triton's Python backend; self-contained: needs numpy and tokenizers."""

# mypy: ignore-errors

import json
import os

import numpy as np
import tokenizers
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One instance of the tokenizer."""

    def initialize(self, args):
        """Open the tokenizer that lies beside this file."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = os.path.dirname(os.path.abspath(__file__))
        self.tokenizer = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.tokenizer.enable_truncation(int(parameters["maximum_tokens"]))
        padding = self.tokenizer.padding or {}
        self.tokenizer.enable_padding(
            pad_id=padding.get("pad_id", 0),
            pad_token=padding.get("pad_token", "[PAD]"),
            pad_to_multiple_of=int(parameters["pad_to"]),
        )
        self.maximum = int(parameters["maximum_tokens"])
        self.outputs = [
            (item["name"], triton.triton_string_to_numpy(item["data_type"])) for item in config["output"]
        ]

    def execute(self, requests):
        """Tokenize each request's texts, padded to the longest of them."""
        responses = []
        for request in requests:
            texts = triton.get_input_tensor_by_name(request, "text").as_numpy()
            try:
                lines = [item.decode("utf-8") for item in texts.reshape(-1)]
            except UnicodeDecodeError as error:
                responses.append(triton.InferenceResponse(error=triton.TritonError(f"text is not UTF-8: {error}")))
                continue
            encoded = self.tokenizer.encode_batch(lines)
            columns = {
                "input_ids": [item.ids for item in encoded],
                "attention_mask": [item.attention_mask for item in encoded],
                "token_type_ids": [item.type_ids for item in encoded],
            }
            # Padding to a multiple may pass the model's longest input.
            tensors = [
                triton.Tensor(name, np.asarray(columns[name], dtype=dtype)[:, : self.maximum])
                for name, dtype in self.outputs
            ]
            responses.append(triton.InferenceResponse(output_tensors=tensors))
        return responses
