"""Stage `evaluate`: reads a Hugging Face folder and questions, writes predictions and a score."""
