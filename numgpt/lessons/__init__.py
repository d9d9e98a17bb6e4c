"""THE COURSE, in reading order. gpt.py: all of GPT on one screen, forwards and backwards."""
