"""Ways of spending a budget on a question."""
