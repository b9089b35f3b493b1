"""One training loop for teachers, students and fine-tuning."""
