"""What scores a sample as an answer to a question."""
