"""From logits to text, and scores."""
