"""The eight GLUE tasks: what they are, their examples, their metrics, and a built-in corpus in their shape."""
