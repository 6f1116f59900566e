"""Messages to prompts, and text back to thinking, answers and tool calls."""
