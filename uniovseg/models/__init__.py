"""Networks: tensors in, tensors out; built modules are passed in."""
