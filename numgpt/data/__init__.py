"""TEXT FILES -> BATCHES. Corpora and windows of them; examples of what to answer, and what is
trained on."""
