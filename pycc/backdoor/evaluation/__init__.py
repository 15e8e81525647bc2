"""What a backdoor does and what defenses leave of it: experiments, measures and pictures."""
