"""The trainings that a configuration names: pre-training and fine-tuning."""
