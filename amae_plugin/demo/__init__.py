"""``make demo``: a spoken corpus, trainings on it, and their comparison; a run on real data needs none of it."""
