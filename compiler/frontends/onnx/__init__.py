"""ONNX models: read, checked, and brought to the small set of operators; a file for each family of rules."""
