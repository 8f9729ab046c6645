"""Stage `evaluate`: a Hugging Face folder and questions in, predictions and a score out."""
