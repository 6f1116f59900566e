"""Training a model to think: losses, trainers, reward models, and what they need."""
