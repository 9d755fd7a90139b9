"""The model's half of an answer: the fair queue, the engines behind one seam, and the worker between the two."""
