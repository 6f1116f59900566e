"""What a model is trained on: generated problems, verified traces, labelled steps; and what must be kept out."""
