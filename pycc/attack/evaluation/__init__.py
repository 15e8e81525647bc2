"""The evaluation of attacks: jobs, problems, places, baselines, results and sanity checks."""
